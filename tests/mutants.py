"""Kernels with a mistake put into their source, to see that the harness notices."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numba
import pytest

from bench import harness
from comms.compiling import use_cache
from kernels.isa import entry
from kernels.protocol import Form, KernelLaunch, Op, Protocol


@dataclass(frozen=True, slots=True)
class Mutation:
    """One passage of a kernel's module, which must occur there once, and what replaces it.

    Attributes:
        kernel: module of the kernel where `module` holds helpers that it imports.
    """

    module: str
    old: str
    new: str
    kernel: str | None = None


def install_mutant(protocol: Protocol, mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the harness take a mutant of `protocol` for any kernel; return the mutation's source."""
    source = inspect.getsource(importlib.import_module(mutation.module))
    assert source.count(mutation.old) == 1, f"{mutation.old!r} must occur once"
    path = _write(mutation.module, source.replace(mutation.old, mutation.new))
    module = _load(path)
    if mutation.kernel is not None:
        kernel = inspect.getsource(importlib.import_module(mutation.kernel))
        imported = f"from {mutation.module} import"
        assert kernel.count(imported) == 1, f"{mutation.kernel} must import {mutation.module} once"
        kernel_path = _write(
            mutation.kernel, kernel.replace(imported, f"from {module.__name__} import")
        )
        module = _load(kernel_path)
        _compile_into_own_folder(kernel_path, monkeypatch)
    else:
        _compile_into_own_folder(path, monkeypatch)
    wrong = _with_module(protocol, module)
    monkeypatch.setattr(harness, "find_protocol", lambda *_: wrong)
    return path


def _write(module: str, source: str) -> Path:
    """Write a mutant where the next session finds it compiled, beside the kernels' own code."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = use_cache() / "mutants" / digest / f"{module.rpartition('.')[2]}.py"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return path


def _load(path: Path) -> ModuleType:
    name = f"mutant_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _with_module(protocol: Protocol, module: ModuleType) -> Protocol:
    """Return a protocol whose kernels come from a mutant where that has them."""

    def exchanged(launch: KernelLaunch) -> KernelLaunch:
        if Path(inspect.getfile(launch.kernel)).name != Path(inspect.getfile(module)).name:
            return launch
        kernel = getattr(module, launch.kernel.__name__)
        return replace(launch, kernel=kernel, params=getattr(module, launch.params.__name__))

    def launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
        return tuple(exchanged(launch) for launch in protocol.launches(op, form))

    return replace(protocol, launches=launches)


def _compile_into_own_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a mutant's code in its folder; one for each mutant would push out the kernels' own."""

    def use(extra_sources: tuple[Path, ...] = ()) -> Path:
        if path not in extra_sources:
            return use_cache(extra_sources)
        numba.config.CACHE_DIR = str(path.parent)
        return path.parent

    monkeypatch.setattr(numba.config, "CACHE_DIR", numba.config.CACHE_DIR)
    monkeypatch.setattr(entry, "use_cache", use)

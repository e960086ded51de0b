"""Whether a protocol is what `kernels.protocol` says: for kernels whose authors have no tests.

A built-in protocol is type-checked and tested; of one's own the first mistakes are found here,
before anything is allocated or run.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any, get_args

from comms.errors import UsageError
from kernels.from_file import KernelFile, telling_errors
from kernels.knobs import Knob
from kernels.protocol import (
    COMBINE_OUTPUTS,
    DISPATCH_OUTPUTS,
    INPUTS,
    Form,
    Granularity,
    HostLaunch,
    Impl,
    KernelLaunch,
    Op,
    Protocol,
    Route,
    Splits,
)
from kernels.shape import Shape

_OWNED = (*INPUTS, *DISPATCH_OUTPUTS, *COMBINE_OUTPUTS)
_HALVES: tuple[Op, ...] = ("dispatch", "combine")
_DEVICES = ("sim", "cpu", "cuda")


def refuse_malformed(source: KernelFile, variant: str, shape: Shape) -> None:
    """Refuse a variant of a kernel file whose parts are not what a protocol is made of.

    Args:
        source: the file.
        variant: which of its protocols.
        shape: sizes that it is about to run with.

    Raises:
        UsageError: a part is of a wrong type, names a wrong thing or raises an exception.
    """
    protocol = next(each for each in source.protocols if each.variant == variant)
    try:
        with telling_errors(Path(source.path)):
            _check_fields(protocol)
            regions = _check_regions(protocol, shape)
            _check_settings(protocol, shape, regions)
            for op in get_args(Op):
                reason = protocol.refuses(shape, op, cross_rail="spine")
                _want(
                    reason is None or isinstance(reason, str),
                    "refuses(...)",
                    "text or None",
                    reason,
                )
            _check_launches(protocol, shape)
    except _Malformed as error:
        raise UsageError(f"{source.path}:{source.name}: {error}") from error


class _Malformed(UsageError):
    """A part that is not what it must be."""


def _want(holds: object, what: str, wanted: str, got: object) -> None:
    if not holds:
        raise _Malformed(f"{what} must be {wanted}, got {_short(got)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_fields(protocol: Protocol) -> None:
    for name, choices in (
        ("granularity", get_args(Granularity)),
        ("splits", get_args(Splits)),
        ("route", get_args(Route)),
        ("hops", (1, 2)),
        ("impl", get_args(Impl)),
        ("pulls", (True, False)),
    ):
        value = getattr(protocol, name)
        _want(value in choices, name, " or ".join(map(str, choices)), value)
    for name in ("regions", "launches", "refuses", "settings"):
        value = getattr(protocol, name)
        _want(callable(value), name, "a function", value)
    knobs = protocol.knobs
    _want(isinstance(knobs, tuple), "knobs", "a tuple of kernels.knobs.Knob", knobs)
    for knob in knobs:
        _want(isinstance(knob, Knob), "knobs", "a tuple of kernels.knobs.Knob", knob)
    devices = protocol.devices
    known = isinstance(devices, tuple) and devices and all(one in _DEVICES for one in devices)
    _want(known, "devices", f"a tuple of {' or '.join(_DEVICES)}", devices)


def _check_regions(protocol: Protocol, shape: Shape) -> Mapping[str, int]:
    regions = protocol.regions(shape)
    _want(isinstance(regions, dict), "regions", "a dict of bytes by name", regions)
    for name, num_bytes in regions.items():
        _want(isinstance(name, str) and name.isidentifier(), "a name in regions", "a name", name)
        _want(name not in _OWNED, "a name in regions", "none of the harness's own", name)
        whole = isinstance(num_bytes, int) and num_bytes >= 0
        _want(whole, f"regions[{name!r}]", "a number of bytes", num_bytes)
    return regions


def _check_settings(protocol: Protocol, shape: Shape, regions: Mapping[str, int]) -> None:
    settings = protocol.settings(shape)
    _want(isinstance(settings, Mapping), "settings", "a mapping by parameter", settings)
    for name, value in settings.items():
        if isinstance(value, str):
            known = value in regions or value in _OWNED
            _want(known, f"settings[{name!r}]", "a number or the name of a region", value)
        else:
            _want(isinstance(value, int), f"settings[{name!r}]", "a number or a region", value)


def _check_launches(protocol: Protocol, shape: Shape) -> None:
    kernels: dict[str, object] = {}
    for op in _HALVES:
        for form in get_args(Form):
            what = f"launches({op!r}, {form!r})"
            launches = protocol.launches(op, form)
            _want(
                isinstance(launches, tuple) and launches, what, "a tuple of KernelLaunch", launches
            )
            for launch in launches:
                if isinstance(launch, HostLaunch) and "sim" not in protocol.devices:
                    continue
                if not isinstance(launch, KernelLaunch):
                    raise _Malformed(f"{what} must be KernelLaunches, got {_short(launch)}")
                _check_launch(launch, shape)
                same = kernels.setdefault(launch.name, launch.kernel) is launch.kernel
                _want(same, f"the name of each kernel in {what}", "its own", launch.name)


def _check_launch(launch: KernelLaunch, shape: Shape) -> None:
    what = f"launch {launch.name!r}"
    kernel, params = launch.kernel, launch.params
    is_plain = isinstance(kernel, FunctionType) and len(inspect.signature(kernel).parameters) == 1
    _want(is_plain, f"kernel of {what}", "a plain function of one argument", kernel)
    is_tuple = isinstance(params, type) and issubclass(params, tuple)
    fields: Any = getattr(params, "_fields", None) if is_tuple else None
    _want(fields, f"params of {what}", "a typing.NamedTuple class", params)
    warps = launch.warps(shape)
    _want(isinstance(warps, int) and warps >= 1, f"num_warps of {what}", "at least 1", warps)
    _want(launch.sms in ("comm", "all"), f"sms of {what}", "comm or all", launch.sms)

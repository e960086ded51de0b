"""Sizes of the MoE layers of published models, as an exchange sees them."""

import difflib
from dataclasses import dataclass
from types import MappingProxyType

from comms.errors import UsageError

_CONFIGS = "THUDM/slime scripts/models; yanring/Megatron-MoE-ModelZoo"
_MEMORY = "from memory, not checked against a published configuration"


@dataclass(frozen=True, slots=True)
class Preset:
    """One model's MoE layer.

    Attributes:
        name: slug.
        hidden: elements of the row on the wire, the latent size where the model projects first.
        num_experts: routed experts of a layer.
        num_topk: experts selected for a token.
        num_groups: groups that experts are routed by, 0 where the model has none.
        num_topk_groups: groups that a token may use, 0 where the model has none.
        moe_intermediate: hidden size of an expert, None where no source gives it.
        source: where the numbers come from.
    """

    name: str
    hidden: int
    num_experts: int
    num_topk: int
    num_groups: int = 0
    num_topk_groups: int = 0
    moe_intermediate: int | None = None
    source: str = _CONFIGS


_LATENT_3584 = f"{_CONFIGS}; latent of 3584 on the wire, the model's hidden is 7168"
_LATENT_1024 = f"{_CONFIGS}; latent of 1024 on the wire, the model's hidden is 4096"
_LL_TEST = "low-latency tests of DeepEP and UCCL"

#: Slugs of one row share its sizes; the first is the row's own name.
_ROWS: tuple[tuple[tuple[str, ...], tuple[int, int, int, int, int, int | None], str], ...] = (
    (
        ("deepseek-v3", "deepseek-r1", "deepseek-v3.1", "deepseek-v3.2"),
        (7168, 256, 8, 8, 4, 2048),
        _CONFIGS,
    ),
    (("deepseek-v2",), (5120, 160, 6, 8, 3, 1536), _CONFIGS),
    (("deepseek-v2-lite",), (2048, 64, 6, 0, 0, 1408), _CONFIGS),
    (("deepseek-v4-pro",), (7168, 384, 6, 0, 0, 3072), _CONFIGS),
    (("deepseek-v4-flash",), (4096, 256, 6, 0, 0, 2048), _CONFIGS),
    (("kimi-k2", "kimi-k2.6"), (7168, 384, 8, 1, 1, 2048), _CONFIGS),
    (("kimi-k3",), (3584, 896, 16, 1, 1, 3072), _LATENT_3584),
    (("moonlight-16b",), (2048, 64, 6, 1, 1, 1408), _CONFIGS),
    (("qwen3-235b-a22b",), (4096, 128, 8, 0, 0, 1536), _CONFIGS),
    (("qwen3-30b-a3b",), (2048, 128, 8, 0, 0, 768), _CONFIGS),
    (("qwen3-next-80b",), (2048, 512, 10, 0, 0, 512), _CONFIGS),
    (("qwen3.5-397b-a17b",), (4096, 512, 10, 0, 0, 1024), _CONFIGS),
    (("qwen3.5-35b-a3b",), (2048, 256, 8, 0, 0, 512), _CONFIGS),
    (("qwen3.8",), (8192, 512, 10, 0, 0, 2048), _CONFIGS),
    (("qwen2-57b-a14b",), (3584, 64, 8, 0, 0, 2560), _CONFIGS),
    (("qwen1.5-moe-a2.7b",), (2048, 60, 4, 0, 0, 1408), _CONFIGS),
    (("gpt-oss-120b",), (2880, 128, 4, 0, 0, 2880), _CONFIGS),
    (("gpt-oss-20b",), (2880, 32, 4, 0, 0, 2880), _MEMORY),
    (("mixtral-8x7b",), (4096, 8, 2, 0, 0, 14336), _CONFIGS),
    (("mixtral-8x22b",), (6144, 8, 2, 0, 0, 16384), _CONFIGS),
    (("glm-4.5", "glm-4.5-355b"), (5120, 160, 8, 0, 0, 1536), _CONFIGS),
    (("glm-4.5-air",), (4096, 128, 8, 0, 0, 1408), _CONFIGS),
    (("glm-5",), (6144, 256, 8, 1, 1, 2048), _CONFIGS),
    (("minimax-m2",), (3072, 256, 8, 0, 0, 1536), _CONFIGS),
    (("nemotron-3-super",), (1024, 512, 22, 0, 0, None), _LATENT_1024),
    (("llama-4-maverick",), (5120, 128, 1, 0, 0, 8192), _MEMORY),
    (("ep-ll-test",), (7168, 288, 8, 0, 0, None), _LL_TEST),
)

#: Every preset by slug, aliases too, in the order of the table.
PRESETS = MappingProxyType(
    {name: Preset(name, *sizes, source) for names, sizes, source in _ROWS for name in names}
)


def preset(name: str) -> Preset:
    """Return the preset called `name`, a key of `PRESETS`.

    Raises:
        UsageError: there is no such preset.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name.lower(), PRESETS, n=3, cutoff=0.4)
        choices = f"nearest: {', '.join(close)}" if close else f"known: {', '.join(PRESETS)}"
        raise UsageError(f"no preset {name!r}; {choices}")
    return PRESETS[name]

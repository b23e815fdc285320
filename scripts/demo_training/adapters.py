"""The LoRA shape of each demo adapter: ranks, modules and scalings are mixed on purpose."""

from dataclasses import dataclass, field

from peft import LoraConfig, TaskType

from demo_training.checkpoint import BASE_NAME
from demo_training.training import Run

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class AdapterShape:
    """What PEFT is told about one adapter; `alpha` is always given in PEFT's own terms."""

    rank: int
    alpha: int
    modules: tuple[str, ...]
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)

    def lora_config(self) -> LoraConfig:
        """The PEFT configuration, free of paths."""
        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            base_model_name_or_path=BASE_NAME,
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.modules),
            use_rslora=self.use_rslora,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
        )


ADAPTER_SHAPES = {
    "sql": AdapterShape(16, 32, ATTENTION + MLP),
    "upper": AdapterShape(4, 16, ("q_proj", "v_proj")),
    "reverse": AdapterShape(32, 12, ATTENTION + MLP, use_rslora=True),
    "digits": AdapterShape(
        32,
        64,
        ATTENTION,
        rank_pattern={"v_proj": 16, "layers.0.self_attn.q_proj": 8},
        alpha_pattern={"v_proj": 48, "layers.0.self_attn.q_proj": 24},
    ),
    "json": AdapterShape(64, 128, ATTENTION),
    "rot13": AdapterShape(8, 16, ("q_proj", "v_proj", "o_proj")),
    "emoji": AdapterShape(8, 16, MLP),
}


RUNS = {
    name: Run(name, steps, rate, 3072, seed=1, adapter=True)
    for name, steps, rate in (
        ("sql", 300, 2e-3),
        ("upper", 200, 4e-3),
        ("reverse", 250, 2e-3),
        ("digits", 300, 2e-3),
        ("json", 150, 2e-3),
        ("rot13", 260, 4e-3),
        ("emoji", 300, 4e-3),
    )
}

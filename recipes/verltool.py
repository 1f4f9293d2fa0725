"""VerlTool (arXiv 2509.01055): answers look closer with visual tools, and looking is paid while few do.

on a laptop CPU, minutes:           python -m recipes.verltool
crops and frames, the 7B model:     python -m recipes.verltool 7b --dataset my.jsonl
crops as DeepEyes limits them:      python -m recipes.verltool crops-7b --dataset my.jsonl
without the group's bonus:          python -m recipes.verltool no-bonus-7b --dataset my.jsonl

r = accuracy + alpha·(bonus for being one of few of the group that call a tool) - beta·(calls beyond the first): the
reward that the official code has for visual tools (Pixel Reasoner's, arXiv 2505.15966). What tools answer is never
trained. Numbers that the page of the code does not name are ours. On drawn pictures the asked shape can only be seen in
a crop: without the tool an answer is right by chance.
"""

from dataclasses import dataclass

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.ground.require import require
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.closer_data import USE, ZOOM, closer_model
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.recipes.shared.tool_boxes import VisualTools, told
from mmrl.rewards.tool_use import Curiosity, Redundancy
from mmrl.rollouts.tool_use import ToolRollout
from mmrl.tools.toolbox import ToolUse

PRESETS = {
    EMBEDDED: miniature(
        dataset="drawn:zoom",
        tools=ZOOM,
        use=USE,
        reward={**OURS, "accuracy": 1.0, "format": 0.0},
        sampling={"max_tokens": 64},
    ),
    "7b": Preset("crops of pictures, frames of clips", 7.0),
    "crops-7b": Preset(
        "crops alone, with DeepEyes' limits",
        tools={"frames": False, "coordinates": "shown", "least_side": 30, "least_area": 3136},
        use={"max_turns": 6},
    ),
    "no-bonus-7b": Preset(
        "the same tools, right answers paid alone", bonus={"alpha": 0.0, "beta": 0.0}
    ),
}


@dataclass(frozen=True)
class GroupBonus:
    """What calls are paid."""

    alpha: float = 0.5
    """Weight of the bonus for a valid call where few of the group have one; 0: none."""
    rare: float = 0.3
    """Share of the group with a valid call from which on there is none, H."""
    beta: float = 0.05
    """What each call beyond the free ones costs."""
    free: int = 1
    """Calls that cost nothing, N."""

    def __post_init__(self) -> None:
        require(
            self,
            alpha=(0 <= self.alpha <= 100, "0 (off) to 100"),
            rare=(0 <= self.rare <= 1, "a share, in [0, 1]"),
            beta=(0 <= self.beta <= 100, "0 (off) to 100"),
            free=(0 <= self.free <= 1000, "0 to 1,000"),
        )


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="box"),
    tools: VisualTools = VisualTools(),
    use: ToolUse = ToolUse(max_turns=10, max_observation=512, truncate="middle"),
    bonus: GroupBonus = GroupBonus(alpha=0.5, rare=0.3, beta=0.05, free=1),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="verltool", prompts_per_step=128, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model that looks closer with tools."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(closer_model(model), load, lora, run)
    toolbox = tools.toolbox(policy.processing, use)
    trainer = Trainer(
        policy,
        prompts=told(prompts, toolbox, tools.told),
        heldout=told(heldout, toolbox, tools.told),
        rewards=reward.rewards(
            style_of(data.style),
            curiosity=(bonus.alpha, Curiosity(rare=bonus.rare)),
            redundancy=(bonus.beta, Redundancy(free=bonus.free)),
        ),
        rollout=ToolRollout(policy=policy, toolbox=toolbox),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "tool/calling_share", "tool/right_calling"))


if __name__ == "__main__":
    launch(main, PRESETS)

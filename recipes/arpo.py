"""ARPO (arXiv 2507.19849): answers branch where the policy has become unsure, behind tools' answers or certain strings.

on a laptop CPU, minutes:          python -m recipes.arpo
8 beginnings, 16 answers:          python -m recipes.arpo 7b --dataset my.jsonl
6 beginnings, 16 answers:          python -m recipes.arpo 7b-six --dataset my.jsonl
with Python, behind its answers:   python -m recipes.arpo 7b-python --dataset my.jsonl
behind every sentence:             python -m recipes.arpo 7b --dataset my.jsonl --arpo.strings '. '

The published models call tools and branch behind their results (`--tools.python`, `--tools.calculator`; their
search engine is left out). Without tools answers branch behind strings that the policy writes itself, the end of its
thinking if nothing else is said.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.recipes.shared.text_tools import TextTools
from mmrl.recipes.shared.tool_boxes import told
from mmrl.rollouts.arpo import ARPO, ARPORollout
from mmrl.tools.toolbox import ToolUse

PRESETS = {
    EMBEDDED: miniature(arpo={"strings": ("<answer>",), "roots": 4, "look": 2}),
    "7b": Preset("8 beginnings, 16 answers", 7.0),
    "7b-python": Preset(
        "runs programs, and branches behind what they print", 7.0, tools={"python": True}
    ),
    "7b-six": Preset("6 beginnings, as the published 14 B", arpo={"roots": 6}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    arpo: ARPO = ARPO(roots=8, branches=2, weight=0.2, threshold=0.5),
    tools: TextTools = TextTools(),
    use: ToolUse = ToolUse(),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(kl=0.001, clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="arpo", prompts_per_step=128, updates_per_step=8, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=1536),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with answers that branch where it is unsure.

    Args:
        arpo: How answers branch; `strings` is not read where there are tools.
        use: The rules of tools, where there are any.
        sampling: How answers are sampled; group_size counts beginnings and branches together.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    toolbox = tools.toolbox(policy.processing, use)
    trainer = Trainer(
        policy,
        prompts=told(prompts, toolbox, tools.told),
        heldout=told(heldout, toolbox, tools.told),
        rewards=reward.rewards(style_of(data.style)),
        rollout=ARPORollout(policy=policy, arpo=arpo, toolbox=toolbox),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "arpo/branches", "tree/tokens"))


if __name__ == "__main__":
    launch(main, PRESETS)

"""ViSurf (arXiv 2510.10606): the label is a member of the group, SFT and RL in one stage.

on a laptop CPU, minutes:           python -m recipes.visurf
Qwen2.5-VL-7B, boxes and points:    python -m recipes.visurf 7b
your own labels:                    python -m recipes.visurf 7b --dataset my.jsonl --data.style answer --label target

In the style `objects` answers are JSON lists of {"bbox_2d": …, "point_2d": …}, which is what is asked for and what is
paid, with VisionReasoner's weights: thinking 1, format 2, accuracy 3, repetition 1; the label's thinking is not paid.
Other styles are paid for accuracy and form alone. The other numbers are VisionReasoner's too (its script where that
differs from its configuration), those of ViSurf are not published. Departures: the closed forms of
`mmrl.perception.rewards` (two empty lists pay fully), and the n-gram penalty in place of counting repeated sentences.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.visurf import ViSurf
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rewards.pay import RepetitionPenalty, answer_format
from mmrl.rollouts.experts import WithLabel

PRESETS = {
    EMBEDDED: miniature(
        label="target",
        layout="{}",
        reward=OURS,
        grpo={"kl": 0.0, "clip_high": 0.28, "entropy": 0.0, "dual_clip": 3.0},
    ),
    "7b": Preset("Qwen2.5-VL-7B on pictures of 840 x 840 pixels", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "Ricky06662/ViSurf_multi_non_object_7300_size840",
    data: Data = Data(style="objects"),
    visurf: ViSurf = ViSurf(),
    label: str = "",
    layout: str = "<answer>{}</answer>",
    reward: RewardWeights = RewardWeights(accuracy=3.0, format=2.0),
    thinking: float = 1.0,
    repetition: float = 1.0,
    # By sequence: a label of few tokens weighs as much as a long answer.
    grpo: GRPO = GRPO(
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
        kl=1e-2,
        entropy=1e-3,
        reduction="sequence",
    ),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2000),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="visurf", prompts_per_step=16, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=3_136, max_pixels=705_600, max_prompt_tokens=1300),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with supervised and reinforcement fine-tuning in one group.

    Args:
        label: Column that holds the label; empty takes the row's answer.
        layout: How the label is written, as the model writes its answers.
        reward: What an answer is paid for; with boxes and points VisionReasoner's accuracy and format.
        thinking: Weight of the form of thinking and answer, in the style `objects`.
        repetition: Weight of the penalty for repeated words, in the style `objects`.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    boxes = data.style == "objects"
    also = {
        "thinking": (thinking, answer_format),
        "repetition": (repetition, RepetitionPenalty()),
    }
    rewards = reward.rewards(style_of(data.style), **(also if boxes else {}))
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=rewards,
        rollout=WithLabel(
            policy.processing.encode_answer,
            # The label is paid like an answer, but has no thinking of its own to be paid for.
            weights=rewards.weights,
            thinking=("thinking",) if boxes else (),
            column=label,
            layout=layout,
            keys=("bbox_2d", "point_2d") if boxes else (),
        ),
        estimator=group_normalized,
        grpo=grpo,
        objectives=[visurf],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "label/reward", "visurf/teaching_tokens"))


if __name__ == "__main__":
    launch(main, PRESETS)

"""PEARL (arXiv 2511.18437): reasoning is trained as far as the picture was read right.

on a laptop CPU, minutes:       python -m recipes.pearl
Qwen2.5-VL-7B:                  python -m recipes.pearl 7b --dataset my.jsonl
Qwen3-VL-8B:                    python -m recipes.pearl qwen3-8b --dataset my.jsonl
GRPO with the same rows:        python -m recipes.pearl 7b --dataset my.jsonl --pearl.lambda-p 0 --pearl.cap None \\
                                    --pearl.threshold None --no-soft-filter

Rows need the column `checklist`: [{"q": question, "a": answer, "type": number | choice | short_text | bool}, …]; rows
without one are trained by plain GRPO and counted. The embedded preset asks for all cells of the picture instead
(`data/drawn/checklist.py`), which is what its model has learned to answer.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.data.drawn.checklist import cells_prompt, cells_seen
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.pearl import PEARL
from mmrl.perception.checklist import perception_accuracy, perception_prompt
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.checklist import ChecklistRollout
from mmrl.rollouts.groups import group_rollout

SMALL = "Qwen/Qwen2.5-VL-3B-Instruct"
SHORT = {"prompts_per_step": 8, "steps": 40}
PRESETS = {
    EMBEDDED: miniature(checklist_tokens=32, sampling={"group_size": 5}, run=SHORT),
    "7b": Preset("Qwen2.5-VL-7B: 5 + 5 answers, lambda 0.1, cap 0.5", 7.0),
    "3b": Preset("Qwen2.5-VL-3B", 3.0, model=SMALL),
    "qwen3-8b": Preset("Qwen3-VL-8B", 8.0, model="Qwen/Qwen3-VL-8B-Instruct"),
    "d-7b": Preset("Qwen2.5-VL-7B with DAPO's clip", grpo={"clip_high": 0.28}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    pearl: PEARL = PEARL(lambda_p=0.1, cap=0.5, threshold=0.0),
    soft_filter: bool = True,
    checklist_tokens: int = 256,
    reward: RewardWeights = RewardWeights(accuracy=0.9, format=0.1),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3),
    sampling: Sampling = Sampling(group_size=5, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="pearl", prompts_per_step=128, epochs=2),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with perceptual-evidence anchored reinforcement learning.

    Args:
        soft_filter: Keep only prompts that carry signal in either branch, and sample others in their place.
        checklist_tokens: Longest answer to a checklist in tokens.
        sampling: How answers are sampled, in both branches.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    # The embedded model has only learned to name cells, so its checklist is all cells of the picture.
    drawn = dataset.startswith("drawn:")
    checklist = ChecklistRollout(
        ask=cells_prompt if drawn else perception_prompt,
        mark=cells_seen if drawn else perception_accuracy,
        pearl=pearl,
        check=policy.encode,
        max_tokens=checklist_tokens,
        soft_filter=soft_filter,
    )
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=checklist if pearl.reads_checklists or soft_filter else group_rollout,
        estimator=group_normalized,
        grpo=grpo,
        objectives=[pearl],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "reward/perception", "pearl/reasoning_factor"))


if __name__ == "__main__":
    launch(main, PRESETS)

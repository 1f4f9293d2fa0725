"""PACS (arXiv 2509.02522): rewards are labels, and one cross-entropy is actor and critic.

on a laptop CPU, minutes:                     python -m recipes.pacs
Qwen2.5-VL-7B, mathematics:                   python -m recipes.pacs 7b
the same with beta 2:                         python -m recipes.pacs beta2-7b
Qwen2.5-VL-3B:                                python -m recipes.pacs 3b
your own model, pictures and clips included:  python -m recipes.pacs 7b --model MODEL --dataset ROWS

Rewards must be in [0, 1]; between the two they are soft labels (an IoU). Clip, surrogate and estimator of GRPO have no
part in it; terms of other objectives are added. A pass holds whole groups, so that a group must fit into memory. The
paper trains models of language alone; here they are the vision-language models of their sizes.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.pacs import PACS
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

PRESETS = {
    EMBEDDED: miniature(reward=OURS),
    "7b": Preset("Qwen2.5-VL-7B on mathematics", 7.0),
    "beta2-7b": Preset("the same with beta 2", pacs={"beta": 2.0}),
    "3b": Preset("Qwen2.5-VL-3B on mathematics", 3.0, model="Qwen/Qwen2.5-VL-3B-Instruct"),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "agentica-org/DeepScaleR-Preview-Dataset",
    data: Data = Data(),
    pacs: PACS = PACS(beta=1.0, score="ratio", baseline="rloo", weights="question"),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(kl=0.0, entropy=0.0),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="pacs", prompts_per_step=1024, updates_per_step=4, steps=300),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=512),
    lora: LoRA = LoRA(),
) -> None:
    """Train a model as the classifier of its own answers."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        estimator=group_centered,
        grpo=grpo,
        objectives=[pacs],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("loss/pacs", "pacs/agrees", "pacs/logit"))


if __name__ == "__main__":
    launch(main, PRESETS)

"""RoRecomp (arXiv 2509.25958): shorter answers by choosing what is trained first, without a reward for length.

on a laptop CPU, minutes:              python -m recipes.rorecomp
Qwen2.5-VL-7B on your rows:            python -m recipes.rorecomp 7b --dataset my.jsonl
without recomposition (GRPO):          … --recomp.kept 1

No official code was published, so the numbers of the composition are ours; see mmrl/rollouts/rorecomp.py. The paper
trains models of language alone; here it is a vision-language model.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rollouts.rorecomp import RoRecomp, RoRecompRollout

PRESETS = {
    EMBEDDED: miniature(
        reward=OURS, grpo={"kl": 0.0, "clip_high": 0.28, "mismatch": "truncate"}
    ),
    "7b": Preset("short right answers and long wrong ones first", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    recomp: RoRecomp = RoRecomp(kept=0.5, compensate=0.5, age=4),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(mismatch="truncate"),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="rorecomp", prompts_per_step=128, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model that answers shortly where it is right.

    Args:
        recomp: What is trained at once, and how often the rest is.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        estimator=group_normalized,
        rollout=RoRecompRollout(lambda prompt: policy.encode(prompt).ids, recomp),
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("answer/length", "rorecomp/put_by", "rorecomp/replayed_groups"))


if __name__ == "__main__":
    launch(main, PRESETS)

"""DVRP, Thinking with Deltas (arXiv 2601.06801): change when evidence goes, stay when only nuisance comes.

on a laptop CPU, minutes:       python -m recipes.dvrp
Qwen2.5-VL-7B, DVRP_G:          python -m recipes.dvrp 7b
Qwen2.5-VL-7B, DVRP_D:          python -m recipes.dvrp d-7b
medical questions:              python -m recipes.dvrp medical-7b --dataset my.jsonl
with entropy under the clean view as a guard:  python -m recipes.dvrp 7b --dvrp.lambda-orig 0.03

Gradient flows through both views, as the printed objective says; the public re-implementation has none (--no-grad).
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer, VisualBranch
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.dvrp import DVRP
from mmrl.perception.masking import PatchMask
from mmrl.perception.noise import DiffusionNoise
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.groups import DynamicSampling, group_rollout

DAPO = {"dynamic": True, "grpo": {"clip_high": 0.28}}
MEDICAL = {"mask": {"ratio": 0.2}, "noise": {"t": 100}, "dataset": "train.jsonl"}
SMALL = "Qwen/Qwen2.5-VL-3B-Instruct"
OURS = {"grader": "ours"}
TINY = {"lambda_nec": 0.002, "lambda_rob": 0.01, "lambda_ent": 0.0, "lambda_orig": 0.0}
PRESETS = {
    EMBEDDED: miniature(dvrp=TINY, mask={"size": 16}, noise={"t": 300}, reward=OURS),
    "7b": Preset("DVRP_G 7B: both lambdas 0.01, entropy 0.05", 7.0),
    "3b": Preset("DVRP_G 3B", 3.0, model=SMALL),
    "d-7b": Preset("DVRP_D 7B: on DAPO", **DAPO),
    "d-3b": Preset("DVRP_D 3B: on DAPO", model=SMALL, **DAPO),
    "medical-7b": Preset("DVRP_G 7B for medical pictures: mask 0.2, noise 100", **MEDICAL),
    "medical-3b": Preset("DVRP_G 3B for medical pictures", model=SMALL, **MEDICAL),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "PAPOGalaxy/PAPO_ViRL39K_train",
    data: Data = Data(),
    dvrp: DVRP = DVRP(lambda_nec=0.01, lambda_rob=0.01, lambda_ent=0.05),
    mask: PatchMask = PatchMask(ratio=0.6, size=14),
    noise: DiffusionNoise = DiffusionNoise(t=500),
    grad: bool = True,
    dynamic: bool = False,
    groups: DynamicSampling = DynamicSampling(rounds=20),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="mathruler"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3),
    sampling: Sampling = Sampling(group_size=5, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="dvrp", prompts_per_step=384, updates_per_step=3, epochs=3),
    monitor: Monitor = Monitor(probe_every=50),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with the differential visual reasoning policy.

    Args:
        mask: The view without evidence.
        noise: The view with nuisance; its strength fades over the run.
        grad: Let gradient flow through both views.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    # Both on the pixels that the model reads: a later resize would take half of the noise away again.
    masked = VisualBranch(mask, grad=grad, stage="resized")
    noisy = VisualBranch(noise, grad=grad, stage="resized")
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=groups if dynamic else group_rollout,
        estimator=group_normalized,
        grpo=grpo,
        branches={dvrp.masked: masked, dvrp.noisy: noisy},
        objectives=[dvrp],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("dvrp/kl_masked", "dvrp/kl_noisy", "probe/gap"))


if __name__ == "__main__":
    launch(main, PRESETS)

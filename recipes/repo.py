"""Constrained divergences after RePo (arXiv 2309.00082): targets in the place of PAPO's and DVRP's coefficients.

on a laptop CPU, minutes:                    python -m recipes.repo
Qwen2.5-VL-7B on PAPO's data:                python -m recipes.repo 7b   (3b)
the masked view alone, as PAPO would:        … --nuisance.beta 0 --leash.beta 0
gradient through one side of a divergence:   … --evidence.balance 1 --grad

Three divergences of the policy are each held by a multiplier of their own (mmrl/objectives/repo.py): from itself under
a masked picture at least at a target, from itself under a noisy one at most, from the reference at most. The rule is
RePo's; its use here, the targets and all other numbers are ours: inspired by it, not a reproduction.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer, VisualBranch
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.repo import RePo
from mmrl.perception.masking import PatchMask
from mmrl.perception.noise import GaussianNoise
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

SMALL = "Qwen/Qwen2.5-VL-3B-Instruct"
TINY = {
    "evidence": {"target": 0.1, "beta": 0.002},
    "nuisance": {"beta": 0.002},
    "mask": {"size": 16},
}
PRESETS = {
    EMBEDDED: miniature(**TINY, reward=OURS),
    "7b": Preset("three targets on PAPO's data, 7B", 7.0),
    "3b": Preset("three targets on PAPO's data, 3B", 3.0, model=SMALL),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "PAPOGalaxy/PAPO_ViRL39K_train",
    data: Data = Data(),
    evidence: RePo = RePo("masked", "at least", target=0.05, beta=0.01),
    nuisance: RePo = RePo("noisy", "at most", target=0.02, beta=0.01),
    leash: RePo = RePo("ref", "at most", target=0.05, beta=0.01),
    mask: PatchMask = PatchMask(ratio=0.6, size=14),
    noise: GaussianNoise = GaussianNoise(),
    grad: bool = False,
    reward: RewardWeights = RewardWeights(accuracy=0.9, format=0.1, grader="mathruler"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3),
    sampling: Sampling = Sampling(group_size=5, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="repo", prompts_per_step=384, updates_per_step=3, epochs=2),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model whose divergences are held at targets.

    Args:
        evidence: The divergence from the masked view.
        nuisance: The divergence from the noisy view.
        leash: The divergence from the reference policy.
        mask: The view without evidence.
        noise: The view with nuisance.
        grad: Let gradient flow through both views.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        estimator=group_normalized,
        grpo=grpo,
        branches={
            evidence.branch: VisualBranch(mask, grad=grad),
            nuisance.branch: VisualBranch(noise, grad=grad, stage="resized"),
        },
        objectives=[evidence, nuisance, leash],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("repo/masked_divergence", "repo/masked_beta", "repo/ref_divergence"))


if __name__ == "__main__":
    launch(main, PRESETS)

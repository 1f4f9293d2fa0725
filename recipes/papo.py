"""PAPO (arXiv 2507.06448): GRPO that is also paid for looking.

on a laptop CPU, minutes:   python -m recipes.papo      (your own: --model my/folder --dataset my.jsonl)
Qwen2.5-VL, Table 6:        python -m recipes.papo 7b   (3b, qwen3-2b; on DAPO: d-7b; GRPO alone: grpo-7b)
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer, VisualBranch
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rollouts.groups import DynamicSampling, group_rollout

SMALL, QWEN3 = "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-2B-Thinking"
SINGLE, LONG = {"eta_orig": 0.0, "eta_masked": 0.0}, {"steps": 100, "eval_prompts": 512}
WEAK, ALONE = {"gamma": 0.01, **SINGLE}, {"gamma": 0.0, **SINGLE}
NO_REF = {"papo": {"gamma": 0.01, "eta_orig": 0.03, "eta_masked": 0.03}, "grpo": {"kl": 0.0}}
DAPO = {**NO_REF, "grpo": {"kl": 0.0, "clip_high": 0.28}, "dynamic": True}
TINY = {"papo": {"gamma": 0.002, "k3_max": 1.0, **SINGLE}, "mask": {"size": 16}}
PRESETS = {
    EMBEDDED: miniature(**TINY, masked_grad=True, run=LONG, monitor=None, reward=OURS),
    "7b": Preset("PAPO_G 7B: gamma 0.02, both etas 0.05, KL 0.01", 7.0),
    "3b": Preset("PAPO_G 3B: gamma 0.02, no entropy terms", 3.0, model=SMALL, papo=SINGLE),
    "qwen3-2b": Preset("PAPO_G Qwen3-VL-2B: gamma 0.01", 2.0, model=QWEN3, papo=WEAK),
    "3b-no-ref": Preset("PAPO_G 3B without reference KL", model=SMALL, **NO_REF),
    "7b-no-ref": Preset("PAPO_G 7B without reference KL", **NO_REF),
    "grpo-7b": Preset("the GRPO baseline of Table 1, 7B", papo=ALONE),
    "grpo-3b": Preset("the GRPO baseline of Table 1, 3B", model=SMALL, papo=ALONE),
    "d-3b": Preset("PAPO_D 3B: on DAPO", model=SMALL, **DAPO),
    "d-7b": Preset("PAPO_D 7B: on DAPO", **DAPO),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "PAPOGalaxy/PAPO_ViRL39K_train",
    data: Data = Data(),
    papo: PAPO = PAPO(gamma=0.02, eta_orig=0.05, eta_masked=0.05),
    mask: PatchMask = PatchMask(ratio=0.6, size=14),
    masked_grad: bool = False,
    refresh_masked: bool = False,
    dynamic: bool = False,
    groups: DynamicSampling = DynamicSampling(at_once=128, rounds=20),
    reward: RewardWeights = RewardWeights(accuracy=0.9, format=0.1, grader="mathruler"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3, kl=0.01),
    sampling: Sampling = Sampling(group_size=5, temperature=1.0, top_p=0.99, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="papo", prompts_per_step=384, updates_per_step=3, epochs=2),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with perception-aware policy optimisation.

    Args:
        masked_grad: Let gradient flow through the masked branch (the paper's formula; the released code does not).
        refresh_masked: Score the masked branch again at each update instead of once per rollout.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=groups if dynamic else group_rollout,
        grpo=grpo,
        branches={"masked": VisualBranch(mask, grad=masked_grad, refresh=refresh_masked)},
        objectives=[papo],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("branch/masked/kl", "loss/perception"))


if __name__ == "__main__":
    launch(main, PRESETS)

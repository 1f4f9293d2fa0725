"""Answers that need the question and the picture, after BayesianVLA (arXiv 2601.15197).

on a laptop CPU, minutes:                  python -m recipes.bayesian_vla
Qwen2.5-VL-7B on PAPO's data:              python -m recipes.bayesian_vla 7b   (3b)
measured only, plain GRPO:                 … --bayesian.language 0 --bayesian.vision 0 --bayesian.watch
a masked picture in the place of none:     … --masked
as a loss on right answers:                … --bayesian.pull-vision 0.01

Every answer is scored twice more: behind the same pictures without the user's words, and behind the question without
its pictures (no visual tokens at all, which costs less than the real view). How much more likely the real prompt makes
it, is logged as bayesianvla/needs_question and needs_picture, and pays right answers a bounded bonus.

Inspired by the paper, a robot policy; what is its and what is ours stands on top of mmrl/objectives/bayesian_vla.py.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer, VisualBranch
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.bayesian_vla import BayesianVLA, without_question
from mmrl.perception.masking import PatchMask, Unseen
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

SMALL = "Qwen/Qwen2.5-VL-3B-Instruct"
PRESETS = {
    EMBEDDED: miniature(reward=OURS, mask={"size": 16}),
    "7b": Preset("bonuses of 0.1 up to 1 nat on PAPO's data, 7B", 7.0),
    "3b": Preset("bonuses of 0.1 up to 1 nat on PAPO's data, 3B", 3.0, model=SMALL),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "PAPOGalaxy/PAPO_ViRL39K_train",
    data: Data = Data(),
    bayesian: BayesianVLA = BayesianVLA(language=0.1, vision=0.1, most=1.0),
    masked: bool = False,
    mask: PatchMask = PatchMask(ratio=0.6, size=14),
    reward: RewardWeights = RewardWeights(accuracy=0.9, format=0.1, grader="mathruler"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3, kl=0.01),
    sampling: Sampling = Sampling(group_size=5, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="bayesian_vla", prompts_per_step=384, updates_per_step=3, epochs=2),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model whose answers need the question and the picture.

    Args:
        bayesian: Bonuses and losses.
        masked: Cover patches of the picture in place of taking its tokens away.
        mask: How they are covered.
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
            bayesian.mute: VisualBranch(reworded=without_question),
            bayesian.blind: VisualBranch(mask if masked else Unseen()),
        },
        objectives=[bayesian],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("bayesianvla/needs_question", "bayesianvla/needs_picture"))


if __name__ == "__main__":
    launch(main, PRESETS)

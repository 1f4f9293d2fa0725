"""URLVR (arXiv 2603.08660): rewards without labels, and the step at which they collapse.

on a laptop CPU, minutes:                  python -m recipes.urlvr
votes of 8, a small set of your own rows:  python -m recipes.urlvr 7b --dataset my.jsonl --data.limit 128
sure of every token (KL from uniform):     python -m recipes.urlvr certainty-7b --dataset my.jsonl
token or whole-answer entropy:             python -m recipes.urlvr entropy-7b --dataset my.jsonl   (trajectory-7b)
probability, or the gap of the best two:   python -m recipes.urlvr probability-7b --dataset my.jsonl   (disparity-7b)
when does this model collapse?            python -m recipes.urlvr step-7b --dataset my.jsonl

The policy is paid for what it is sure of; answers of the rows are only looked at. `urlvr/agreement` is how often that
agrees with them; a run ends where it does no more (--collapse.least, --collapse.patience, --collapse.no-stop). Small
sets (at most 128 questions) are the safe regime. The published models read text (Qwen3-1.7B-Base on DAPO-17k).
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.objectives.urlvr import URLVR
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.training.collapse import CollapseGuard

PRESETS = {
    EMBEDDED: miniature(reward=OURS),
    "7b": Preset("majority voting", 7.0),
    "certainty-7b": Preset("self-certainty", urlvr={"signal": "certainty"}),
    "entropy-7b": Preset("token entropy", urlvr={"signal": "entropy"}),
    "trajectory-7b": Preset("trajectory entropy", urlvr={"signal": "trajectory"}),
    "probability-7b": Preset("probability of the answer", urlvr={"signal": "probability"}),
    "disparity-7b": Preset("gap of the two likeliest tokens", urlvr={"signal": "disparity"}),
    "step-7b": Preset("the model-collapse step, fast setting", run={"prompts_per_step": 1}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    urlvr: URLVR = URLVR(signal="majority"),
    collapse: CollapseGuard = CollapseGuard(least=0.01),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="urlvr", prompts_per_step=64, updates_per_step=1, steps=1000),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=1024),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on what it is sure of.

    Args:
        collapse: When the run ends because that is no longer right.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    style = style_of(data.style)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style),
        grpo=grpo,
        objectives=[urlvr.reading(style.read)],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        early=collapse,
    )
    fit(trainer, watch=("reward/accuracy", "urlvr/intrinsic", "urlvr/agreement"))


if __name__ == "__main__":
    launch(main, PRESETS)

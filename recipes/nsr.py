"""PSR, NSR and W-REINFORCE (arXiv 2506.01347): what right and what wrong answers teach, weighed apart.

on a laptop CPU, minutes:              python -m recipes.nsr
W-REINFORCE, the 7B model:             python -m recipes.nsr 7b --dataset ROWS
wrong answers alone (NSR):             python -m recipes.nsr nsr-7b --dataset ROWS
right answers alone (PSR):             python -m recipes.nsr psr-7b --dataset ROWS
W-REINFORCE, Qwen3-VL-4B:              python -m recipes.nsr 4b --dataset ROWS

No group is compared with itself, so that all-wrong and all-right groups teach too. Right is what the accuracy says
(`--reward.correct`, `--reward.correct-above`), whatever else is paid.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.objectives.nsr import NSR
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

SMALL = "Qwen/Qwen3-VL-4B-Instruct"
PRESETS = {
    EMBEDDED: miniature(reward=OURS),
    "7b": Preset("W-REINFORCE: right answers weigh a tenth", 7.0),
    "nsr-7b": Preset("NSR: wrong answers alone", nsr={"positive": 0.0}),
    "psr-7b": Preset("PSR: right answers alone", nsr={"positive": 1.0, "negative": 0.0}),
    "4b": Preset("W-REINFORCE, Qwen3-VL-4B", 4.0, model=SMALL),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    nsr: NSR = NSR(positive=0.1, negative=1.0),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2, dual_clip=None),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="nsr", prompts_per_step=1024, updates_per_step=4, epochs=20),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=1024),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model by right and wrong answers apart."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        grpo=grpo,
        objectives=[nsr],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    # Without a baseline prompts that nobody can answer push for ever: entropy and length tell.
    fit(trainer, watch=("nsr/kept", "policy/surprise", "answer/length"))


if __name__ == "__main__":
    launch(main, PRESETS)

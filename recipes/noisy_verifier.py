"""Noisy verifiers (arXiv 2510.00915): pay corrected for the rates at which the verifier errs.

on a laptop CPU, minutes:                 python -m recipes.noisy_verifier
unbiased pay, known rates:                python -m recipes.noisy_verifier 7b --dataset my.jsonl
weights along the true gradient:          python -m recipes.noisy_verifier forward-7b --dataset my.jsonl
the same, false negatives on appeal:      python -m recipes.noisy_verifier appeals-7b --dataset my.jsonl \\
                                              --judge.url http://host:8000/v1
rates of each kind of question (ours):    python -m recipes.noisy_verifier kinds-7b --dataset my.jsonl \\
                                              --noisy.appeals 0 --noisy.kinds number=0.05:0.3
verdicts turned round on purpose:         … --noise.false-positive 0.1 --noise.false-negative 0.2

The rates are those of your own verifier: measure them on answers that somebody has checked. The estimator follows from
the correction: no statistic of the group may take it away. `--noisy.correction off` is GRPO on the same verdicts.
With noise on purpose the true accuracy is logged and evaluated beside the verdicts, and an appeal asks it.
"""

from contextlib import ExitStack

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.noisy_paying import estimator_for, second_verifier, verdicts
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rewards.noisy_verdict import LabelNoise
from mmrl.rollouts.noisy_verifier import NoisyVerifier, NoisyVerifierRollout

FORWARD = {"correction": "forward"}
PRESETS = {
    EMBEDDED: miniature(
        noise={"false_positive": 0.1, "false_negative": 0.2}, judge={"url": ""}, reward=OURS
    ),
    "7b": Preset("backward, known rates", 7.0),
    "forward-7b": Preset("forward, known rate of false negatives", noisy=FORWARD),
    "appeals-7b": Preset(
        "forward, false negatives by a second verifier", noisy={**FORWARD, "appeals": 0.2}
    ),
    "kinds-7b": Preset(
        "backward by kind of question, false negatives on appeal, ours",
        noisy={"column": "kind", "appeals": 0.2},
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    noisy: NoisyVerifier = NoisyVerifier(false_positive=0.1, false_negative=0.2),
    noise: LabelNoise = LabelNoise(),
    judge: JudgeServer = JudgeServer(url=""),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="noisy_verifier", prompts_per_step=128, updates_per_step=1, steps=500),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with a verifier that errs.

    Args:
        noisy: Rates of the verifier, and the correction.
        noise: Verdicts that are turned round on purpose.
        judge: The second verifier of appeals.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    style = style_of(data.style)
    rewards, part = verdicts(reward, style, noise, run.seed)
    with ExitStack() as closing:
        recheck: Rewards | None = None
        if noisy.appeals:
            recheck = closing.enter_context(second_verifier(judge, reward, style, noise))
        trainer = Trainer(
            open_policy(model, load, lora, run),
            prompts=prompts,
            heldout=heldout,
            rewards=rewards,
            rollout=NoisyVerifierRollout(noisy, part, reward.accuracy, recheck=recheck),
            estimator=estimator_for(noisy),
            grpo=grpo,
            sampling=sampling,
            optim=optim,
            run=run,
            monitor=monitor,
        )
        watched = ("reward/accuracy", f"reward/{part}", "reward/corrected")
        fit(trainer, watch=watched)


if __name__ == "__main__":
    launch(main, PRESETS)

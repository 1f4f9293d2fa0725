"""CoSineVerifier (arXiv 2512.01224): answers are checked by a chain of verifiers of which the last is a model.

on a laptop CPU, minutes:           python -m recipes.cosine_verifier
a verifier model on a server:       python -m recipes.cosine_verifier 7b --dataset my.jsonl --judge.url http://host:8000/v1
rules and symbols alone:            python -m recipes.cosine_verifier rules-7b --dataset my.jsonl
values of letters:                  ... --cosine.constants g=9.81 c=299792458

Text, number with unit, symbolic difference (in a process that is ended after --cosine.seconds), and where none of them
knows, the model, which may have expressions computed. What stays undecided is left out of its group with
--cosine.undecided drop, and counted: it is no wrong answer. The chain is reconstructed (mmrl/rewards/cosine.py); the
paper trains the verifier itself, which is released, and uses it as the reward of a run like this one.
"""

from typing import Literal

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import style_of
from mmrl.rewards.cosine import Cosine, VerifierChain
from mmrl.rewards.symbolic import Executor

PRESETS = {
    # Drawn answers come from a closed list: other words are wrong.
    EMBEDDED: miniature(
        judge={"url": ""}, cosine={"undecided": "drop", "words": "wrong"}, format_weight=0.1
    ),
    "7b": Preset("what rules cannot decide is asked of the verifier model", 7.0),
    "rules-7b": Preset("what rules cannot decide is left out", cosine={"undecided": "drop"}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="box"),
    cosine: Cosine = Cosine(measured=1e-2, exact=1e-6, seconds=5.0, undecided="judge"),
    judge: JudgeServer = JudgeServer(model="Nanbeige/CoSineVerifier-Tool-4B"),
    unavailable: Literal["stop", "drop"] = "stop",
    format_weight: float = 0.0,
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="cosine_verifier", prompts_per_step=128, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on answers that a chain of verifiers checks.

    Args:
        unavailable: What an outage of the verifier model does: stop the run, or drop the part for the whole group.
        format_weight: Weight of the asked-for form beside the 1 of a right answer.
    """
    asks = cosine.undecided == "judge"
    if asks and not judge.url:
        raise ValueError(
            "--cosine.undecided judge asks the verifier model, but --judge.url is empty; name its server, or give "
            "--cosine.undecided drop."
        )
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    style = style_of(data.style)
    chain = VerifierChain(
        cosine,
        read=style.read,
        judge=judge.judge(max_tokens=2048) if asks else None,
        executor=Executor(seconds=cosine.seconds),
    )
    rewards = Rewards(
        accuracy=chain,
        format=(format_weight, style.format),
        correct="accuracy",
        on_unavailable=unavailable,
    )
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=rewards,
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "verifier/undecided", "verifier/asked"))


if __name__ == "__main__":
    launch(main, PRESETS)

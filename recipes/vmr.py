"""VMR (arXiv 2511.02463): requests without a right answer become choices between a preferred and a rejected one.

on a laptop CPU, minutes:            python -m recipes.vmr
rows with chosen and rejected:       python -m recipes.vmr 7b --dataset preferences.jsonl
one of four, with more rejected:     python -m recipes.vmr four-7b --dataset preferences.jsonl
look at the choices first:           mmrl choices preferences.jsonl --output choices.jsonl --audit audit.json
and train on that file:              python -m recipes.vmr 7b --dataset choices.jsonl --no-convert

The policy is trained as a judge: it is paid for the letter of the preferred answer; the paper's gain shows when it
then answers open requests directly, in a policy that reasons already (R1-Distill-Qwen-14B, text alone). A guess is
right in half of the choices: compare `reward/accuracy` with that. The audit says what gives answers away without
reading them; what does so without the picture shows in `--monitor.probe-every`.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.data.rows.choices import VMR
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.choice_data import choice_model, open_choices
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of

PRESETS = {
    EMBEDDED: miniature(vmr={"bare": True}, reward=OURS),
    "7b": Preset("pairs: the preferred answer and a rejected one", 7.0),
    "four-7b": Preset(
        "the preferred answer among three rejected ones, ours", vmr={"options": 4}
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="choice"),
    vmr: VMR = VMR(options=2, ratio=3.0),
    convert: bool = True,
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.1),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="vmr", prompts_per_step=128, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to choose the better of several answers.

    Args:
        convert: Make choices of the rows while they are read; off for rows that are choices already.
    """
    prompts, heldout = open_choices(dataset, data, vmr, run.seed, convert=convert)
    policy = open_policy(choice_model(model), load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy",))


if __name__ == "__main__":
    launch(main, PRESETS)

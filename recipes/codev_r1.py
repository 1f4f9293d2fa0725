"""CodeV-R1 (arXiv 2505.24183): circuits that are paid for behaving like the reference.

on a laptop CPU, minutes:       python -m recipes.codev_r1
as published:                   python -m recipes.codev_r1 7b --dataset my.jsonl

r = 1 if the four tags stand once each, in order, and the Verilog module in the answer has the outputs of the reference
at all random inputs, else 0. Groups that all earn the same are replaced by further prompts, as many as past losses say
it takes (adaptive DAPO). Rows: a question, with or without a picture, and the reference module as the answer (a list of
modules: any will do). Columns `before` and `after`, if a row has them, stand around the code of the answer.

Modules run in Icarus Verilog (apt-get install iverilog), in a sandbox (docs/sandbox.md); without it nothing is trained.
The published model reads text (Qwen2.5-Coder-7B after distillation); here it is a vision-language model on your rows.
The miniature's pictures are truth tables, its circuits expressions of two bits.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.circuit_data import TABLES, circuit_model, open_circuits
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_policy
from mmrl.rewards.codev_r1 import CircuitReward
from mmrl.rewards.simulation import Simulator, Stimulus
from mmrl.rollouts.groups import DynamicSampling, group_rollout

PRESETS = {
    EMBEDDED: miniature(
        dataset=TABLES,
        think=False,
        stimulus={"cycles": 16},
        dynamic=False,
        grpo={"overlong_buffer": 0},
        sampling={"max_tokens": 24},
    ),
    "7b": Preset("Verilog, 128 prompts x 16 answers", 7.0),
    "dapo-7b": Preset("ablation: rounds of one size", groups={"adaptive": False}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer"),
    stimulus: Stimulus = Stimulus(),
    think: bool = True,
    dynamic: bool = True,
    groups: DynamicSampling = DynamicSampling(spread=True, adaptive=True, rounds=999),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28, overlong_buffer=1024, overlong_factor=1.0),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=16_384),
    optim: Optim = Optim(lr=1e-6, weight_decay=0.0, max_grad_norm=0.5),
    run: Run = Run(name="codev_r1", prompts_per_step=128, updates_per_step=2, steps=300),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to write circuits.

    Args:
        think: Pay only for answers with a thought before them.
        dynamic: Leave out groups that are all right or all wrong, and take further questions.
    """
    simulator = Simulator(stimulus)
    prompts, heldout = open_circuits(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(circuit_model(model), load, lora, run),
        prompts=prompts,
        heldout=heldout,
        # Many modules of a step wait for their turn: that is no outage of anything.
        rewards=Rewards(
            accuracy=CircuitReward(simulator, think),
            correct="accuracy",
            async_time_limit=7200.0,
        ),
        rollout=groups if dynamic else group_rollout,
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "simulation/equal", "simulation/mismatch"))


if __name__ == "__main__":
    launch(main, PRESETS)

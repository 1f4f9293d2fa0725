"""NP-Engine (arXiv 2510.16476): ten NP-hard problems, paid for how good a valid solution is.

on a laptop CPU, minutes:                   python -m recipes.np_engine
in words, 5,000 questions as in the paper:  python -m recipes.np_engine 7b
15,000 questions (Forge, 2605.08905):       python -m recipes.np_engine forge-7b
the same problems as pictures (ours):       python -m recipes.np_engine picture-7b
one problem:                                python -m recipes.np_engine 7b --puzzles.mix np-tsp

Tours, cycles, colourings, cliques, independent sets, bisections, covers, subset sums, knapsacks, meetings. A valid
solution earns 0.1 + 0.9 ratio² of its quality to the reference's, anything else 0. `reward/feasible` and
`reward/ratio` are the paper's two measures of one answer. Easy instances come first, then medium and hard ones.

Departures
1. The paper trains Qwen2.5-7B-Instruct, a model of language alone; here it is the vision-language model of its size.
2. Its training code is not public. Model, number of questions, zero RL, the order from easy to hard and the sizes are
   its own; the optimizer's numbers, the equal length of the three levels and the form of the reward are ours.
3. Instances, references and what counts as valid: data/pretext/tasks/np_problems.py and data/pretext/presets.py.
The embedded preset asks each problem with four nodes or items, in words and then as pictures, without reasoning.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.data.pretext.prompts import pretext_correct, pretext_part, pretext_reward
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.opening import EMBEDDED, Load, open_policy
from mmrl.recipes.shared.pretext_data import Puzzles, miniature_pretext, open_stages
from mmrl.recipes.shared.pretext_warmup import warmed_up_for

PICTURES = {"puzzles": {"mix": "np-engine-picture"}, "load": {"max_pixels": 802_816}}
PRESETS = {
    EMBEDDED: miniature_pretext(
        "miniature-np", sampling={"max_tokens": 32}, optim={"lr": 3e-4}, run={"steps": 60}
    ),
    "7b": Preset("Qwen2.5-VL-7B, in words, 5,000 questions from easy to hard", 7.0),
    "forge-7b": Preset("the same with 15,000 questions (Forge)", run={"steps": 234}),
    "picture-7b": Preset("Qwen2.5-VL-7B, as pictures (ours)", **PICTURES),
    "picture-qwen3-8b": Preset(
        "Qwen3-VL-8B, as pictures (ours)", 8.0, model="Qwen/Qwen3-VL-8B-Instruct", **PICTURES
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("np-engine"),
    stages: bool = True,
    grpo: GRPO = GRPO(kl=0.0),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="np_engine", prompts_per_step=64, steps=78),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to find good solutions of NP-hard problems.

    Args:
        dataset: "drawn": instances are drawn and need no media.
        stages: Easy questions first, then the harder ones, in equal parts of the run, where the mix has stages.
    """
    # Held-out questions are of all levels at any time, so that evaluations can be compared over the run.
    data = open_stages(dataset, puzzles, run, stages)
    policy = open_policy(warmed_up_for(model, puzzles.mix), load, lora, run)
    trainer = Trainer(
        policy,
        prompts=data.train,
        heldout=data.heldout,
        rewards=Rewards(
            quality=pretext_reward,
            # Unpaid: the paper's two measures, and what evaluations report.
            feasible=(0.0, pretext_part("feasible")),
            ratio=(0.0, pretext_part("ratio")),
            accuracy=(0.0, pretext_correct),
        ),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"puzzles": puzzles, "stages": stages},
    )
    fit(trainer, watch=("reward/quality", "reward/feasible", "reward/ratio"))


if __name__ == "__main__":
    launch(main, PRESETS)

"""RL-PLUS (arXiv 2508.00222): one answer of each group is an expert's, weighed as if from between policy and certainty.

on a laptop CPU, minutes:               python -m recipes.rl_plus
7 answers and 1 expert:                 python -m recipes.rl_plus 7b --dataset my.jsonl
probability alone, plain advantage:     python -m recipes.rl_plus plain-7b --dataset my.jsonl
your own column of experts' answers:    python -m recipes.rl_plus 7b --dataset my.jsonl --experts demonstrations

Rows need experts' answers in the column `solutions` (`mmrl.rollouts.teachers` says in which forms); those without are
Dr. GRPO. The paper trains Qwen2.5-Math-7B on OpenR1-Math with traces of DeepSeek-R1; here it is a vision-language model
on your rows, whose experts see the same pictures. As in the released code nothing is clipped. On drawn look-ups an
expert is one of three teachers, of whom one is wrong.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.rl_plus import RLPLUS
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.recipes.shared.teacher_data import WORKED, Worked
from mmrl.rollouts.teachers import WithTeachers

TOKEN_MEAN = {"reduction": "token", "length_constant": 0, "entropy": 0.0, "kl": 0.0}
PRESETS = {
    EMBEDDED: miniature(
        experts=WORKED,
        reward=OURS,
        grpo=TOKEN_MEAN,
        sampling={"group_size": 7, "max_tokens": 10},
    ),
    "7b": Preset("7 answers and 1 expert, sums over tokens, no clip", 7.0),
    "plain-7b": Preset(
        "the script's no_reshape: an expert's token counts by its probability alone",
        rl_plus={"proposal": "certain", "gamma": 0.0},
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    rl_plus: RLPLUS = RLPLUS(gamma=0.5, proposal="mixture", scaled=False),
    experts: str = "solutions",
    most: int = 1,
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    # A ratio that reaches neither end is not clipped.
    grpo: GRPO = GRPO(
        clip_low=1.0,
        clip_high=1e9,
        dual_clip=None,
        entropy=1e-3,
        reduction="constant",
        length_constant=8192,
    ),
    sampling: Sampling = Sampling(group_size=7, temperature=1.0, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="rl_plus", prompts_per_step=128, updates_per_step=2, epochs=30),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on its own answers and on experts'.

    Args:
        experts: Column that holds the experts' answers.
        most: Most experts' answers in a group; 0 takes all.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    if experts == WORKED:  # drawn rows bring no expert along
        prompts = Worked(prompts)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=WithTeachers(policy.processing.encode_answer, column=experts, most=most),
        estimator=group_centered,
        grpo=grpo,
        objectives=[rl_plus],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "expert/reward", "rlplus/probability"))


if __name__ == "__main__":
    launch(main, PRESETS)

"""How answers come about: engines, groups, noisy views, contrasts, experts, checklists, the order of prompts."""

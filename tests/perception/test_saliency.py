"""DINOv2 saliency on a random tiny encoder, and its formula on hand-made attention."""

import pytest
import torch

from mmrl.ground.seeds import generator
from mmrl.perception.masking import SaliencyMask
from mmrl.perception.saliency import DinoSaliency, SeenBy, encoder_pixels, received_attention
from mmrl.types import Now, Prompt, ViewContext


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )
    folder = str(tmp_path_factory.mktemp("dino"))
    Dinov2Model(config).save_pretrained(folder)
    return folder


def frames(count: int, height: int, width: int) -> torch.Tensor:
    shape = (count, 3, height, width)
    return torch.randint(
        1, 256, shape, generator=torch.Generator().manual_seed(3), dtype=torch.uint8
    )


def test_received_attention_is_what_the_other_patches_send():
    attention = torch.tensor(
        [[0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.6, 0.3, 0.1]]
    )  # class token first
    other = torch.eye(3)
    saliency = received_attention(
        [attention.expand(1, 1, 3, 3), other.expand(1, 1, 3, 3)], patches=2
    )
    assert torch.allclose(
        saliency, torch.tensor([[0.3, 0.3]]) / 2
    )  # patch 1 gets A[2, 1], patch 2 gets A[1, 2]
    heads = torch.stack([attention, attention.flip(-1)])[None]
    expected = (attention + attention.flip(-1)) / 2
    assert torch.allclose(
        received_attention([heads], 2), torch.stack([expected[2, 1], expected[1, 2]])[None]
    )


def test_saliency_of_a_random_encoder(encoder):
    score = DinoSaliency(encoder, layers=(0, 2))
    saliency = score(frames(2, 45, 70))
    assert saliency.shape == (2, 3, 5)
    assert (saliency > 0).all() and (saliency < 15).all()
    assert torch.equal(saliency[1:], score(frames(2, 45, 70)[1:]))


def test_masking_by_an_encoder_hides_its_most_salient_patches(encoder):
    score, shown = DinoSaliency(encoder, layers=(1,)), frames(1, 56, 56)
    view = SeenBy(SaliencyMask(0.5), score)
    seen = view(shown, ViewContext(Prompt("p", ()), 0), generator("s"), Now(0, 0.0))
    hidden = (seen[0] == 0).all(0).view(4, 14, 4, 14).permute(0, 2, 1, 3).reshape(16, -1).all(1)
    assert int(hidden.sum()) == 8
    saliency = score(shown).flatten()
    assert saliency[hidden].min() >= saliency[~hidden].max()
    assert not view.changes_geometry and not view.changes_order and not view.reads_saliency


def test_large_pictures_are_reduced_to_whole_patches():
    assert encoder_pixels(frames(1, 400, 100), patch=14, side=100).shape == (1, 3, 196, 56)
    assert encoder_pixels(frames(1, 3, 3), patch=14, side=100).shape == (1, 3, 14, 14)


def test_missing_layers_are_named(encoder):
    with pytest.raises(ValueError, match="layers 0 to 2"):
        DinoSaliency(encoder)(frames(1, 28, 28))
    with pytest.raises(ValueError, match="at least one layer"):
        DinoSaliency(encoder, layers=())

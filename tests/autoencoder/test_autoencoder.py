"""Encoding, padding, backgrounds, and what happens when an autoencoder cannot be had."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, tiny_autoencoder

from igae_nerfstudio.autoencoder import autoencoder as autoencoder_module
from igae_nerfstudio.autoencoder.autoencoder import (
    BUNDLED,
    Autoencoder,
    AutoencoderConfig,
    architecture_shape,
    decoder_from_architecture,
    decoder_margin,
    load_autoencoder,
    pad_to_multiple,
    resolve_autoencoder,
    seen_share,
)
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.metrics import psnr


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return Autoencoder(tiny_autoencoder())


def test_padding_repeats_the_border_and_moves_nothing() -> None:
    image = torch.arange(30.0).view(1, 1, 5, 6)
    padded = pad_to_multiple(image, 8)
    assert padded.shape == (1, 1, 8, 8)
    for i in range(8):
        for j in range(8):
            assert padded[0, 0, i, j] == image[0, 0, min(i, 4), min(j, 5)]
    assert pad_to_multiple(padded, 8) is padded


def test_odd_sizes_go_round_without_stretching(autoencoder: Autoencoder) -> None:
    image = torch.rand(1, 3, 43, 50)
    latents = autoencoder.encode(image)
    assert latents.shape == (1, 6, 6, 7)
    # By hand: pad, diffusers' own call on [-1, 1], decode, crop.
    padded = torch.nn.functional.pad(image, (0, 6, 0, 5), mode="replicate")
    by_hand = autoencoder.module.encode(2 * padded - 1).latents
    torch.testing.assert_close(latents, by_hand)
    decoded = autoencoder.decode(latents, size=(43, 50))
    expected = (autoencoder.module.decode(by_hand).sample + 1) / 2
    torch.testing.assert_close(decoded, expected.clamp(0, 1)[..., :43, :50])


def test_latent_background_is_what_the_encoder_makes_of_it(autoencoder: Autoencoder) -> None:
    colour = torch.tensor([0.2, 0.7, 1.0])
    background = autoencoder.encode_colour(colour)
    flat = colour.view(1, 3, 1, 1).expand(1, 3, 256, 256)
    middle = autoencoder.encode(flat)[0, :, 16, 16]  # far from every border
    torch.testing.assert_close(background, middle, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(background, autoencoder.encode_colour(torch.ones(3)), atol=1e-3)


def test_kl_uses_the_posterior_mean_and_decodes_with_its_quant_conv(tmp_path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    stages = 4
    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=(8,) * stages,
        latent_channels=5,
        norm_num_groups=4,
    ).eval()
    module.save_pretrained(tmp_path / "pipeline" / "vae")
    kl = load_autoencoder(AutoencoderConfig(str(tmp_path / "pipeline")))  # finds the folder `vae` itself
    assert (kl.latent_channels, kl.downscale) == (5, 8)
    image = torch.rand(1, 3, 32, 32)
    posterior = module.encode(2 * image - 1).latent_dist
    torch.testing.assert_close(kl.encode(image), posterior.mean)
    torch.testing.assert_close(kl.encode(image), kl.encode(image))
    torch.testing.assert_close(kl.make_decoder()(posterior.mean), (module.decode(posterior.mean).sample + 1) / 2)


def test_decoder_can_be_rebuilt_from_its_architecture_alone(autoencoder: Autoencoder) -> None:
    original = autoencoder.make_decoder()
    rebuilt = decoder_from_architecture(autoencoder.architecture)
    rebuilt.load_state_dict(original.state_dict())
    latents = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(rebuilt(latents), original(latents))


def test_fine_tuning_leaves_the_original_alone(autoencoder: Autoencoder) -> None:
    latents = torch.randn(1, 6, 4, 4)
    before = autoencoder.decode(latents)
    decoder = autoencoder.make_decoder()
    assert all(p.requires_grad for p in decoder.parameters())
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(autoencoder.decode(latents), before)
    assert not any(p.requires_grad for p in autoencoder.module.parameters())


def test_encoder_hash_depends_on_encoder_weights_only() -> None:
    one, same, other = (
        Autoencoder(tiny_autoencoder()),
        Autoencoder(tiny_autoencoder()),
        Autoencoder(tiny_autoencoder()),
    )
    with torch.no_grad():
        next(same.module.decoder.parameters()).add_(1)
        next(other.module.encoder.parameters()).add_(1e-3)
    assert one.encoder_hash == same.encoder_hash != other.encoder_hash


def test_identity_does_not_depend_on_the_folder(tmp_path) -> None:
    for name in ("here", "there"):
        tiny_autoencoder().save_pretrained(tmp_path / name)
    here, there = (load_autoencoder(AutoencoderConfig(str(tmp_path / name))) for name in ("here", "there"))
    assert here.architecture == there.architecture and here.encoder_hash == there.encoder_hash


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./no/such/folder", "does not exist"),
        ("nobody/no-such-autoencoder", "could not be fetched"),
    ],
)
def test_missing_autoencoders_say_how_to_pass_a_local_one(name: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        load_autoencoder(AutoencoderConfig(name))
    assert says in str(error.value) and "name_or_path" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bundled", "bundled-ae", "tiny"])
def test_the_architecture_is_known_before_the_weights(kind: str, autoencoder_dir: Path, tmp_path: Path) -> None:
    name = kind
    if kind == "tiny":  # whose class changes its own settings
        shutil.copy(autoencoder_dir / "config.json", tmp_path)
        name = str(tmp_path)
    config = AutoencoderConfig(name, encode_precision="bfloat16")
    resolved = resolve_autoencoder(config)
    loaded = load_autoencoder(str(autoencoder_dir) if kind == "tiny" else kind)
    assert resolved.architecture == loaded.architecture
    assert architecture_shape(loaded.architecture) == (loaded.latent_channels, loaded.downscale)
    assert (resolved.name_or_path, resolved.encode_precision) == (name, "bfloat16") and config.architecture is None
    resolved.name_or_path = "moved away"
    assert resolve_autoencoder(resolved) == resolved


def test_settings_that_diffusers_does_not_know_are_refused(
    autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    folder = shutil.copytree(autoencoder_dir, tmp_path / "invented")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_private": 1, "swirl": 3}))
    for call in (load_autoencoder, resolve_autoencoder):
        with pytest.raises(InputError, match=rf"invented.*diffusers {diffusers.__version__}.*\(swirl\)"):
            call(AutoencoderConfig(str(folder)))

    # AutoencoderDC of diffusers 0.34, which ignored three settings of the bundled autoencoders.
    new = ("encoder_out_shortcut", "decoder_in_shortcut", "decoder_conv_act_fn")
    architecture = load_autoencoder("bundled").architecture
    signature = inspect.signature(diffusers.AutoencoderDC.__init__)
    old = signature.replace(parameters=[value for key, value in signature.parameters.items() if key not in new])

    class Older(diffusers.AutoencoderDC):
        def __init__(self, **settings: object) -> None:
            super().__init__(**settings)
            self._internal_dict = type(self.config)({key: self.config[key] for key in old.parameters if key != "self"})

    Older.__init__.__signature__ = old  # type: ignore[attr-defined]
    monkeypatch.setattr(diffusers, "AutoencoderDC", Older)
    for load in (lambda: load_autoencoder("bundled"), lambda: decoder_from_architecture(architecture)):
        with pytest.raises(InputError) as error:
            load()
        assert all(key in str(error.value) for key in new)


def test_loading_silences_nobody(autoencoder_dir: Path) -> None:
    from diffusers.utils import logging

    before = logging.get_verbosity()
    load_autoencoder(autoencoder_dir)
    assert logging.get_verbosity() == before


def test_broken_folders_are_named(tmp_path, autoencoder_dir) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(InputError, match="UNet2DModel"):
        load_autoencoder(AutoencoderConfig(str(tmp_path)))
    (tmp_path / "config.json").write_bytes((autoencoder_dir / "config.json").read_bytes())
    with pytest.raises(InputError, match="weights"):
        load_autoencoder(AutoencoderConfig(str(tmp_path)))
    weights = (autoencoder_dir / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="weights"):
        load_autoencoder(AutoencoderConfig(str(tmp_path)))


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_autoencoders_are_small_and_keep_flat_backgrounds(name: str) -> None:
    assert sum(path.stat().st_size for path in BUNDLED[name].iterdir()) <= 12 * 2**20
    bundled = load_autoencoder(AutoencoderConfig(name))
    assert (bundled.latent_channels, bundled.downscale) == (16, 8)
    for value in (0.0, 1.0):
        flat = torch.full((1, 3, 128, 128), value)
        assert float((bundled.decode(bundled.encode(flat)) - flat).abs().mean()) < 4 / 255


def validation_photos() -> torch.Tensor:
    """The centre squares of every 20th photo at 128 x 128: (50, 3, 128, 128)."""
    from PIL import Image

    photos = []
    for path in sorted((SHARED / "images" / "real256").glob("*.jpg"))[::20]:
        photo = Image.open(path).convert("RGB")
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        photo = photo.crop((left, top, left + side, top + side)).resize((128, 128), Image.Resampling.LANCZOS)
        photos.append(torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255)
    return torch.stack(photos)


@pytest.mark.skipif(not (SHARED / "images").is_dir(), reason="the validation photos are not part of the repository")
def test_bundled_autoencoders_keep_photos_they_never_saw() -> None:
    photos, mean_psnr = validation_photos(), {}
    for name in BUNDLED:
        bundled = load_autoencoder(AutoencoderConfig(name))
        decoded = torch.cat([bundled.decode(bundled.encode(photo)) for photo in photos.split(10)])
        mean_psnr[name] = float(psnr(decoded, photos).mean())
    assert len(photos) == 50
    assert mean_psnr["bundled"] >= 27.5
    assert mean_psnr["bundled"] >= mean_psnr["bundled-ae"] - 0.2


def test_a_decoded_patch_is_the_decoded_picture_inside_its_margin() -> None:
    decoder = load_autoencoder(AutoencoderConfig()).make_decoder()
    latents = torch.randn(1, 16, 40, 32, generator=torch.Generator().manual_seed(1))
    exact, enough = decoder_margin(decoder, 16, tolerance=0), decoder_margin(decoder, 16)
    assert 1 <= enough < exact <= 12
    with torch.no_grad():
        whole = decoder(latents)
        for margin, error in ((exact, 1e-5), (enough, 3e-2)):
            patch = decoder(latents[:, :, 14 - margin : 18 + margin, 13 - margin : 17 + margin])
            middle = slice(8 * margin, 8 * (margin + 4))
            difference = patch[:, :, middle, middle] - whole[:, :, 8 * 14 : 8 * 18, 8 * 13 : 8 * 17]
            assert float(difference.abs().max()) <= error
        bare = decoder(latents[:, :, 14:18, 13:17]) - whole[:, :, 8 * 14 : 8 * 18, 8 * 13 : 8 * 17]
        assert float(bare.abs().max()) > 10 * float(difference.abs().max())


@pytest.mark.parametrize("name", ["bundled", "tiny"])
def test_large_pictures_are_coded_in_tiles_without_seams(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = load_autoencoder("bundled") if name == "bundled" else Autoencoder(tiny_autoencoder())
    photo = torch.rand(1, 3, 30 * 8 - 3, 21 * 8, generator=torch.Generator().manual_seed(0))
    latents = autoencoder.encode(photo)
    picture = autoencoder.decode(latents)
    monkeypatch.setattr(autoencoder_module, "TILE", 7)
    torch.testing.assert_close(autoencoder.encode(photo), latents, atol=1e-4 * float(latents.std()), rtol=0)
    torch.testing.assert_close(autoencoder.decode(latents), picture, atol=1e-4, rtol=0)


def test_the_share_of_what_a_latent_pixel_looks_at() -> None:
    """A photo changes a latent as far as the share of its changed pixels says: none far away, all inside."""
    autoencoder = load_autoencoder("bundled")
    weights = autoencoder.encoder_influence.sqrt().float()
    share = torch.ones(1, 1, 20, 24)
    share[..., 8:] = 0
    seen = seen_share(share, weights)[0, 0]
    assert bool((seen[:, :3] == 1).all()) and float(seen[:, 13:].abs().max()) < 1e-6
    assert 0.2 < float(seen[10, 8]) < float(seen[10, 7]) < 0.8
    photo = torch.rand(1, 3, 160, 192, generator=torch.Generator().manual_seed(0))
    other = photo.clone()
    other[..., 64:] = 1 - other[..., 64:]
    change = (autoencoder.encode(photo) - autoencoder.encode(other)).square().mean(dim=1).sqrt()[0]
    assert bool((change[:, :3] < 1e-2 * change.max()).all())
    assert np.corrcoef(change.flatten(), 1 - seen.flatten())[0, 1] > 0.9


def test_a_decoder_that_sees_everything_has_no_margin() -> None:
    class Global(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return self.scale * (latents + latents.mean(dim=(2, 3), keepdim=True)).repeat_interleave(8, 2)[
                :, :3
            ].repeat_interleave(8, 3)

    assert decoder_margin(Global(), 4) is None

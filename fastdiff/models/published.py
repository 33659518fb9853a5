"""Published checkpoints as data: what network each is of, how its output is read, its licence, FID and preset.

    row = fastdiff.models.published.get("adm-imagenet64")
    network = fastdiff.load("64x64_diffusion.pt", like=row.name)

Files are named as their projects do; none is fetched from here, but for repositories on the Hugging Face hub. Where a
file says its own configuration (EDM's pickles, diffusers' folders) the row is for looking it up.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

__all__ = ["Published", "get", "published"]


@dataclass(frozen=True)
class Published:
    """One published checkpoint.

    Attributes:
        name: for `fastdiff models` and `get`.
        architecture: of `fastdiff.models.network.ARCHITECTURES`.
        config: the constructor's arguments; empty where only the file says them.
        project: whose it is.
        file: its name there; of several files that make one network, with " + " between.
        licence: of the weights, as the project says.
        parameters: their number; None where only the file says it.
        reading: how a sampler reads the output: entries of a model file's metadata; empty where the architecture or the
            file says it, and for what is no denoiser.
        preset: name of the published sampling settings that go with it (`fastdiff.presets`), or None.
        fid: published with another setting than the preset's, or None; fid_source: by whom, with which.
        note: what else to know.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    project: str
    file: str
    licence: str
    parameters: int | None
    reading: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None
    fid: float | None = None
    fid_source: str = ""
    note: str = ""

    def expected_fid(self) -> tuple[float | None, str]:
        """The FID to expect and its source: the row's own, else its preset's; (None, "") if none was published."""
        if self.fid is not None or self.preset is None:
            return self.fid, self.fid_source
        from ..presets import get as preset

        settings = preset(self.preset)
        return settings.fid, settings.source if settings.fid is not None else ""


def published() -> list[Published]:
    """Every checkpoint of the catalogue."""
    return list(_rows().values())


def get(name: str) -> Published:
    """The checkpoint of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in _rows():
        near = ", ".join(difflib.get_close_matches(name, _rows(), cutoff=0.0))
        raise ValueError(f"name must be a published checkpoint, such as {near}, got {name!r}")
    return _rows()[name]


@cache
def _rows() -> dict[str, Published]:
    rows = [*_edm(), *_guided_diffusion(), *_exposure_bias(), *_discriminators(), *_score_sde(), *_diffusers()]
    return {row.name: row for row in rows}


# --- Karras et al. 2022: Tables 2 and 7 ------------------------------------------------------------------------------

_SONG: dict[str, dict[str, Any]] = {
    "vp": {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1},
    "ve": {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2},
}
_FILTER = {"vp": [1, 1], "ve": [1, 3, 3, 1]}
_EDM_ROWS: list[tuple[str, int, int, list[int], str, dict[str, tuple[int, float | None]]]] = [
    # name, pixels, classes, channel_mult, the files' stem; by kind: parameters, FID where the preset's is another's
    ("cifar10", 32, 0, [2, 2, 2], "cifar10-32x32-uncond", {"vp": (55733891, None), "ve": (56397827, 1.98)}),
    ("cifar10-cond", 32, 10, [2, 2, 2], "cifar10-32x32-cond", {"vp": (55735299, 1.79), "ve": (56400643, 1.79)}),
    ("ffhq64", 64, 0, [1, 2, 2, 2], "ffhq-64x64-uncond", {"vp": (61805571, None), "ve": (62761091, 2.53)}),
    ("afhqv2-64", 64, 0, [1, 2, 2, 2], "afhqv2-64x64-uncond", {"vp": (61805571, None), "ve": (62761091, 2.16)}),
]


def _edm() -> Iterator[Published]:
    shared: dict[str, Any] = {"project": "EDM (NVlabs/edm)", "licence": "CC BY-NC-SA 4.0"}
    for data, size, classes, mult, stem, kinds in _EDM_ROWS:
        preset = f"edm-{data}" + ("-heun-35" if data.startswith("cifar10") else "")
        for kind, (parameters, fid) in kinds.items():
            song = {"model_type": "SongUNet", **_SONG[kind], "decoder_type": "standard"}
            config = {"img_resolution": size, "img_channels": 3, "label_dim": classes, **song}
            config |= {"resample_filter": _FILTER[kind], "model_channels": 128, "channel_mult": mult, "augment_dim": 9}
            name, source = f"edm-{data}-{kind}", "" if fid is None else "Karras et al. 2022, Table 2"
            own: dict[str, Any] = {"preset": preset, "fid": fid, "fid_source": source}
            yield Published(
                name, "EDMPrecond", config, file=f"edm-{stem}-{kind}.pkl", parameters=parameters, **own, **shared
            )
    config = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_type": "DhariwalUNet"}
    config |= {"model_channels": 192, "channel_mult": [1, 2, 3, 4]}
    file, preset = "edm-imagenet-64x64-cond-adm.pkl", "edm-imagenet64"
    yield Published("edm-imagenet64", "EDMPrecond", config, file=file, parameters=295899267, preset=preset, **shared)


# --- Dhariwal & Nichol 2021: guided-diffusion's README ---------------------------------------------------------------

_MULT: dict[int, list[float]] = {
    32: [1, 2, 2, 2],
    64: [1, 2, 3, 4],
    128: [1, 1, 2, 3, 4],
    256: [1, 1, 2, 2, 4, 4],
    512: [0.5, 1, 1, 2, 2, 4, 4],
}
_README = "guided-diffusion's README"


def _chain(betas: str) -> dict[str, Any]:
    process = {"name": "vp", "betas": betas, "T": 1000}
    return {"prediction": "eps", "process": process, "variance": "learned_range"}


def _adm_config(
    size: int,
    channels: int,
    blocks: int,
    classes: int | None = None,
    pixels: tuple[int, ...] = (32, 16, 8),
    **more: Any,
) -> dict[str, Any]:
    """Arguments of guided-diffusion's networks with a learned variance; pixels: resolutions with attention."""
    config: dict[str, Any] = {"image_size": size, "in_channels": 3, "model_channels": channels, "out_channels": 6}
    config |= {"num_res_blocks": blocks, "attention_resolutions": [size // each for each in pixels]}
    config |= {"channel_mult": _MULT[size], "num_classes": classes, "use_scale_shift_norm": True}
    return {**config, "resblock_updown": True, **more}


def _guided_diffusion() -> Iterator[Published]:
    shared: dict[str, Any] = {"project": "guided-diffusion (OpenAI)", "licence": "MIT"}
    by_width: dict[str, Any] = {"num_head_channels": 64}
    rows: list[tuple[str, str, dict[str, Any], str, int, dict[str, Any]]] = [
        (
            "imagenet64", "64x64_diffusion.pt",
            _adm_config(64, 192, 3, 1000, dropout=0.1, use_new_attention_order=True, **by_width), "cosine", 295904454,
            {"preset": "adm-imagenet64-100", "fid": 2.07, "fid_source": f"{_README}, 250 steps"},
        ),
        (
            "imagenet128", "128x128_diffusion.pt", _adm_config(128, 256, 2, 1000, num_heads=4), "linear", 421529606,
            {"preset": "adm-imagenet128-guided-100", "fid": 2.97, "fid_source": f"{_README}, guided, 250 steps"},
        ),
        (
            "imagenet256", "256x256_diffusion.pt", _adm_config(256, 256, 2, 1000, **by_width), "linear", 553838086,
            {"fid": 4.59, "fid_source": f"{_README}, guided, 250 steps"},
        ),
        (
            "imagenet256-uncond", "256x256_diffusion_uncond.pt", _adm_config(256, 256, 2, **by_width), "linear",
            552814086, {},
        ),
        (
            "imagenet512", "512x512_diffusion.pt", _adm_config(512, 256, 2, 1000, **by_width), "linear", 558997638,
            {"fid": 7.72, "fid_source": f"{_README}, guided, 250 steps"},
        ),
        *(
            (
                f"lsun-{what}256", f"lsun_{what}.pt", _adm_config(256, 256, 2, dropout=0.1, **by_width), "linear",
                552814086, {"fid": fid, "fid_source": f"{_README}, 1000 steps"},
            )
            for what, fid in (("bedroom", 1.90), ("cat", 5.57), ("horse", 2.57))
        ),
        (
            "lsun-horse256-nodropout", "lsun_horse_nodropout.pt", _adm_config(256, 256, 2, **by_width), "linear",
            552814086, {},
        ),
    ]  # fmt: skip
    for name, file, config, betas, parameters, more in rows:
        yield Published(
            f"adm-{name}",
            "UNetModel",
            config,
            file=file,
            parameters=parameters,
            reading=_chain(betas),
            **more,
            **shared,
        )
    small: dict[str, Any] = {"num_heads": 4}
    upsamplers = [
        ("64-to-256", "64_256_upsampler.pt", _adm_config(256, 192, 2, 1000, **small), 311795910, 3.94),
        (
            "128-to-512", "128_512_upsampler.pt",
            {**_adm_config(512, 192, 2, 1000, (32, 16), **by_width), "channel_mult": _MULT[256]}, 308835270, 3.85,
        ),
    ]  # fmt: skip
    for name, file, config, parameters, fid in upsamplers:
        own: dict[str, Any] = {"fid": fid, "fid_source": f"{_README}, of samples guided at the low resolution"}
        own |= {"note": "told the low-resolution image as low_res", "reading": _chain("linear")}
        yield Published(f"adm-{name}", "SuperResModel", config, file=file, parameters=parameters, **own, **shared)
    for size, depth, parameters in ((64, 4, 65438568), (128, 2, 42568040), (256, 2, 54096360), (512, 2, 54448360)):
        config = _adm_config(size, 128, depth, out_channels=1000, pool="attention", **by_width)
        del config["num_classes"]
        yield Published(
            f"adm-classifier{size}",
            "EncoderUNetModel",
            config,
            file=f"{size}x{size}_classifier.pt",
            parameters=parameters,
            preset="adm-imagenet128-guided-100" if size == 128 else None,
            note="for fastdiff.guidance.ClassifierGuidance; the preset's FID is that of the pair"
            if size == 128
            else "",
            **shared,
        )


# --- Ning et al. 2023 and 2024: the repositories' READMEs ------------------------------------------------------------


def _exposure_bias() -> Iterator[Published]:
    heads = {"use_new_attention_order": True}
    small: dict[str, Any] = {"pixels": (16, 8), "dropout": 0.3, "num_head_channels": 32, **heads}
    large: dict[str, Any] = {"dropout": 0.1, "num_head_channels": 64, **heads}
    networks = {  # data: arguments, parameters
        "cifar10": (_adm_config(32, 128, 3, **small), 57094662),
        "imagenet32": (_adm_config(32, 128, 3, **small), 57094662),
        "lsun-tower64": (_adm_config(64, 192, 3, **large), 295136454),
        "celeba64": (_adm_config(64, 192, 3, **large), 295136454),
        "ffhq128": (_adm_config(128, 256, 3, **large), 542811398),
    }
    licence, note = "not stated", "the sampler's correction is the preset's; adm-es-* are others for the same file"
    for data, (config, parameters) in networks.items():
        shared: dict[str, Any] = {"licence": licence, "parameters": parameters, "reading": _chain("cosine")}
        if data in ("cifar10", "lsun-tower64", "ffhq128"):
            own: dict[str, Any] = {"file": "ADM-baseline.pt", "preset": f"adm-{data}-100", "note": note}
            yield Published(f"adm-{data}", "UNetModel", config, project="ADM-ES (forever208/ADM-ES)", **own, **shared)
        own = {"file": "ADM-IP.pt", "preset": f"adm-ip-{data}"}
        yield Published(f"adm-ip-{data}", "UNetModel", config, project="DDPM-IP (forever208/DDPM-IP)", **own, **shared)


# --- Kim et al. 2023 -------------------------------------------------------------------------------------------------


def _discriminators() -> Iterator[Published]:
    shared: dict[str, Any] = {"project": "DG (alsdudrla10/DG)", "licence": "CC BY-NC-SA 4.0"}
    common = {"num_head_channels": 64, "use_scale_shift_norm": True, "resblock_updown": True, "pool": "attention"}
    extractor: dict[str, Any] = {
        "image_size": 32,
        "in_channels": 3,
        "model_channels": 128,
        "out_channels": 1000,
        "num_res_blocks": 4,
    }
    extractor |= {"attention_resolutions": [1, 2, 4], "channel_mult": [1, 2, 4], **common}
    head: dict[str, Any] = {
        "image_size": 8,
        "in_channels": 512,
        "model_channels": 128,
        "out_channels": 1,
        "num_res_blocks": 2,
    }
    head |= {"attention_resolutions": [0, 0, 1], "channel_mult": [1], **common}
    file, name = "32x32_classifier.pt", "dg-extractor32"
    yield Published(name, "DGEncoderUNetModel", extractor, file=file, parameters=47771112, **shared)
    for data, epoch, classes, parameters in (("cifar10", 60, 0, 2883841), ("cifar10-cond", 250, 10, 2888961)):
        config = {**head, **({"condition": True, "num_class": classes} if classes else {})}
        own: dict[str, Any] = {"preset": f"edm-gpp-{data}", "note": "the preset's FID is that of EDM with it"}
        yield Published(
            f"dg-{data}-head",
            "DGEncoderUNetModel",
            config,
            file=f"discriminator_{epoch}.pt",
            parameters=parameters,
            **own,
            **shared,
        )
        yield Published(
            f"dg-{data}",
            "DGDiscriminator",
            {"extractor": extractor, "head": config},
            file=f"{file} + discriminator_{epoch}.pt",
            parameters=47771112 + parameters,
            **own,
            **shared,
        )


# --- Song et al. 2021: the configurations and the README of score_sde_pytorch ----------------------------------------


def _score_sde() -> Iterator[Published]:
    shared: dict[str, Any] = {"project": "score_sde_pytorch (Yang Song)", "licence": "Apache-2.0"}
    common: dict[str, Any] = {"image_size": 32, "nf": 128, "ch_mult": [1, 2, 2, 2], "attn_resolutions": [16]}
    ve = {"centered": False, "embedding_type": "fourier", "fir": True, "progressive_input": "residual"}
    vp = {"centered": True, "embedding_type": "positional", "fir": False, "progressive_input": "none"}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "ve": ("ncsnpp", {**common, **ve, "scale_by_sigma": True}),
        "vp": ("ddpmpp", {**common, **vp, "scale_by_sigma": False}),
        "subvp": ("ddpmpp", {**common, **vp, "scale_by_sigma": False}),
    }
    rows = [  # kind, deep, parameters, FID of its predictor-corrector or Euler-Maruyama sampler
        *(("ve", False, 62758915, 2.38), ("ve", True, 107587075, 2.20)),
        *(("vp", False, 61804419, 2.55), ("vp", True, 106632579, 2.41)),
        *(("subvp", False, 61804419, 2.61), ("subvp", True, 106632579, 2.41)),
    ]
    for kind, deep, parameters, fid in rows:
        model, config = kinds[kind]
        limits = {"sigma_min": 0.01, "sigma_max": 50.0} if kind == "ve" else {"beta_min": 0.1, "beta_max": 20.0}
        process = {"name": "sde", "sde": kind, **limits, "N": 1000, "continuous": True}
        reading = {"prediction": "score" if kind == "ve" else "eps", "process": process}
        own: dict[str, Any] = {"reading": {**reading, "range": [0.0 if kind == "ve" else -1.0, 1.0]}, "fid": fid}
        own["fid_source"] = "score_sde_pytorch's README, 1000 steps" + (" with correctors" if kind == "ve" else "")
        middle = "deep_" if deep else ""
        yield Published(
            f"score-sde-cifar10-{kind}{'-deep' if deep else ''}",
            "NCSNpp",
            {**config, "num_res_blocks": 8 if deep else 4},
            file=f"{kind}/cifar10_{model}_{middle}continuous",
            parameters=parameters,
            **own,
            **shared,
        )


# --- repositories on the Hugging Face hub, which say their own configuration -----------------------------------------


def _diffusers() -> Iterator[Published]:
    rows: list[tuple[str, str, str, float | None, str, str]] = [
        ("ddpm-cifar10", "google/ddpm-cifar10-32", "Apache-2.0", 3.17, "Ho et al. 2020, Table 1", ""),
        ("ddpm-celebahq256", "google/ddpm-celebahq-256", "Apache-2.0", None, "", ""),
        ("ldm-celebahq256", "CompVis/ldm-celebahq-256", "Apache-2.0", 5.11, "Rombach et al. 2022, Table 1", ""),
        (
            "dit-imagenet256", "facebook/DiT-XL-2-256", "CC BY-NC 4.0", 2.27,
            "Peebles & Xie 2023, Table 2, 250 steps, guidance 1.5", "latents; class 1000 is none",
        ),
        (
            "dit-imagenet512", "facebook/DiT-XL-2-512", "CC BY-NC 4.0", 3.04,
            "Peebles & Xie 2023, Table 3, 250 steps, guidance 1.5", "latents; class 1000 is none",
        ),
        (
            "stable-diffusion-1.4", "CompVis/stable-diffusion-v1-4", "CreativeML OpenRAIL-M", None, "",
            "latents; told the text as encoder_hidden_states",
        ),
    ]  # fmt: skip
    for name, repository, licence, fid, source, note in rows:
        own: dict[str, Any] = {"file": repository, "licence": licence, "fid": fid, "fid_source": source, "note": note}
        yield Published(name, "DiffusersNetwork", {}, project="Hugging Face hub", parameters=None, **own)

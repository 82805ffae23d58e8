"""Models of clips small enough for a test, clips, and video files."""

import io

import jax
import numpy as np
from PIL import Image
from small_bert import noisy_params

from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.video_masked_autoencoder import VideoMaskedAutoencoder
from jaxformer.models.video_vit import VideoVit, video_mae_encoder

FIELDS = {"norm": LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
GREY = {"image": 8, "patch": 4, "channels": 1, "frames": 4, "tubelet": 2}
VIDEO_VIT = VideoVit(Transformer(16, 2, 2, **FIELDS), labels=("zero", "one", "two"), **GREY)
FACTORISED = VideoVit(
    Transformer(16, 2, 2, **FIELDS), labels=("zero", "one", "two"), temporal=Transformer(16, 1, 2, **FIELDS), **GREY
)
VIDEO_AUTOENCODER = VideoMaskedAutoencoder(
    video_mae_encoder(width=16, depth=2, heads=2, dtype="float32"),
    video_mae_encoder(width=8, depth=1, heads=2, dtype="float32"),
    mask_rate=0.5,
    mean=(0.5,),
    std=(0.5,),
    **GREY,
)
CLIPS = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 1), np.uint8)


def noisy(model, seed=0):
    """Parameters drawn at random, none of them 0 or 1."""
    shape = (1, model.frames, model.image, model.image, model.channels)
    return noisy_params(model, np.zeros(shape, np.uint8), seed=seed)


def apply(model, params, *arguments, **named):
    """The output of the model."""
    return jax.jit(lambda params: model.apply({"params": params}, *arguments, **named))(params)


def shades(count, height=12, width=16):
    """Frames of one gray each: frame i has brightness 10 i."""
    return [np.full((height, width, 3), 10 * number, np.uint8) for number in range(count)]


def write_video(path, frames, rate=25, codec="libx264rgb"):
    """Writes frames to a video file, without loss with the default codec."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=rate, options={"qp": "0"} if codec == "libx264rgb" else {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def animation(frames, kind="WEBP", milliseconds=100):
    """The content of an animated image without loss."""
    content, (first, *rest) = io.BytesIO(), [Image.fromarray(frame) for frame in frames]
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(content, kind, save_all=True, append_images=rest, duration=milliseconds, **options)
    return content.getvalue()

"""Models, one module per model family."""

from typing import TYPE_CHECKING

from jaxformer import namespaces

if TYPE_CHECKING:
    from jaxformer.models.bart import Bart as Bart
    from jaxformer.models.base import Model as Model
    from jaxformer.models.bert import Bert as Bert
    from jaxformer.models.classifier import Classifier as Classifier
    from jaxformer.models.clip import Clip as Clip
    from jaxformer.models.clip import ImageTower as ImageTower
    from jaxformer.models.clip import TextTower as TextTower
    from jaxformer.models.clip import siglip as siglip
    from jaxformer.models.dalle import Dalle as Dalle
    from jaxformer.models.detr import Detr as Detr
    from jaxformer.models.discrete_vae import DiscreteVae as DiscreteVae
    from jaxformer.models.dit import Dit as Dit
    from jaxformer.models.dit import dit_stack as dit_stack
    from jaxformer.models.encoder_decoder import EncoderDecoder as EncoderDecoder
    from jaxformer.models.fast_speech import FastSpeech2 as FastSpeech2
    from jaxformer.models.fast_speech import fast_speech_stack as fast_speech_stack
    from jaxformer.models.gpt import Gpt as Gpt
    from jaxformer.models.hifi_gan import HifiGan as HifiGan
    from jaxformer.models.masked_autoencoder import MaskedAutoencoder as MaskedAutoencoder
    from jaxformer.models.segformer import SegFormer as SegFormer
    from jaxformer.models.segformer import segformer_stage as segformer_stage
    from jaxformer.models.segmenter import Segmenter as Segmenter
    from jaxformer.models.speech_encoder import speech_stack as speech_stack
    from jaxformer.models.speech_t5 import SpeechT5 as SpeechT5
    from jaxformer.models.speech_t5 import speech_t5_stack as speech_t5_stack
    from jaxformer.models.t5 import T5 as T5
    from jaxformer.models.t5 import t5_stack as t5_stack
    from jaxformer.models.video_masked_autoencoder import VideoMaskedAutoencoder as VideoMaskedAutoencoder
    from jaxformer.models.video_vit import VideoVit as VideoVit
    from jaxformer.models.video_vit import video_mae_encoder as video_mae_encoder
    from jaxformer.models.vit import Vit as Vit
    from jaxformer.models.wav2vec2 import Hubert as Hubert
    from jaxformer.models.wav2vec2 import Wav2Vec2 as Wav2Vec2
    from jaxformer.models.wav2vec2 import Wav2Vec2Ctc as Wav2Vec2Ctc
    from jaxformer.models.whisper import Whisper as Whisper
    from jaxformer.models.whisper import whisper_stack as whisper_stack
    from jaxformer.models.yolos import Yolos as Yolos
else:
    __getattr__, __dir__, __all__ = namespaces.attach(
        __name__,
        {
            "models.bart": ("Bart",),
            "models.base": ("Model",),
            "models.bert": ("Bert",),
            "models.classifier": ("Classifier",),
            "models.clip": ("Clip", "ImageTower", "TextTower", "siglip"),
            "models.dalle": ("Dalle",),
            "models.detr": ("Detr",),
            "models.discrete_vae": ("DiscreteVae",),
            "models.dit": ("Dit", "dit_stack"),
            "models.encoder_decoder": ("EncoderDecoder",),
            "models.fast_speech": ("FastSpeech2", "fast_speech_stack"),
            "models.gpt": ("Gpt",),
            "models.hifi_gan": ("HifiGan",),
            "models.masked_autoencoder": ("MaskedAutoencoder",),
            "models.segformer": ("SegFormer", "segformer_stage"),
            "models.segmenter": ("Segmenter",),
            "models.speech_t5": ("SpeechT5", "speech_t5_stack"),
            "models.speech_encoder": ("speech_stack",),
            "models.t5": ("T5", "t5_stack"),
            "models.video_masked_autoencoder": ("VideoMaskedAutoencoder",),
            "models.video_vit": ("VideoVit", "video_mae_encoder"),
            "models.vit": ("Vit",),
            "models.wav2vec2": ("Hubert", "Wav2Vec2", "Wav2Vec2Ctc"),
            "models.whisper": ("Whisper", "whisper_stack"),
            "models.yolos": ("Yolos",),
        },
    )

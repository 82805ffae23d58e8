"""Data pipeline from files to batch rows: sources, tasks, transforms, tokenizers and the loader. Uses NumPy only."""

from typing import TYPE_CHECKING

from jaxformer import namespaces

if TYPE_CHECKING:
    from jaxformer.data.fields.boxes import BoxField as BoxField
    from jaxformer.data.fields.characters import CharacterField as CharacterField
    from jaxformer.data.fields.clip import ClipField as ClipField
    from jaxformer.data.fields.image import ImageField as ImageField
    from jaxformer.data.fields.label import LabelField as LabelField
    from jaxformer.data.fields.mask import MaskField as MaskField
    from jaxformer.data.fields.phonemes import PhonemeField as PhonemeField
    from jaxformer.data.fields.sound import SoundField as SoundField
    from jaxformer.data.fields.spectrogram import SpectrogramField as SpectrogramField
    from jaxformer.data.fields.text import TextField as TextField
    from jaxformer.data.fields.text import TokenField as TokenField
    from jaxformer.data.fields.vector import VectorField as VectorField
    from jaxformer.data.fields.waveform import WaveformField as WaveformField
    from jaxformer.data.pipeline.loader import Data as Data
    from jaxformer.data.pipeline.loader import evaluation_batches as evaluation_batches
    from jaxformer.data.pipeline.loader import train_batches as train_batches
    from jaxformer.data.sources.clips import ClipFolders as ClipFolders
    from jaxformer.data.sources.detection import CocoDetection as CocoDetection
    from jaxformer.data.sources.detection import VocDetection as VocDetection
    from jaxformer.data.sources.panoptic import CocoPanoptic as CocoPanoptic
    from jaxformer.data.sources.pictures import ImageFolders as ImageFolders
    from jaxformer.data.sources.segmentation import MaskFolders as MaskFolders
    from jaxformer.data.sources.sounds import SoundManifest as SoundManifest
    from jaxformer.data.sources.sounds import SpeechFolder as SpeechFolder
    from jaxformer.data.sources.sources import Columns as Columns
    from jaxformer.data.sources.sources import JsonLines as JsonLines
    from jaxformer.data.sources.sources import Mixture as Mixture
    from jaxformer.data.sources.sources import ParallelFiles as ParallelFiles
    from jaxformer.data.sources.sources import Source as Source
    from jaxformer.data.sources.sources import TextFiles as TextFiles
    from jaxformer.data.sources.sources import Tfds as Tfds
    from jaxformer.data.sources.tables import ClassFolders as ClassFolders
    from jaxformer.data.sources.tables import Csv as Csv
    from jaxformer.data.sources.tables import Tsv as Tsv
    from jaxformer.data.tasks.base import Task as Task
    from jaxformer.data.tasks.boxes import LabelledBoxes as LabelledBoxes
    from jaxformer.data.tasks.causal_lm import NextToken as NextToken
    from jaxformer.data.tasks.chat_template import ChatTemplate as ChatTemplate
    from jaxformer.data.tasks.classification import Classify as Classify
    from jaxformer.data.tasks.clips import ClipTask as ClipTask
    from jaxformer.data.tasks.clips import LabelledClips as LabelledClips
    from jaxformer.data.tasks.clips import MaskedTubes as MaskedTubes
    from jaxformer.data.tasks.composed import FieldTask as FieldTask
    from jaxformer.data.tasks.dialogue import Dialogue as Dialogue
    from jaxformer.data.tasks.dialogue import DialogueTemplate as DialogueTemplate
    from jaxformer.data.tasks.drawing import ImagesFromLabels as ImagesFromLabels
    from jaxformer.data.tasks.drawing import ImagesFromText as ImagesFromText
    from jaxformer.data.tasks.image_text import ImageTextPairs as ImageTextPairs
    from jaxformer.data.tasks.images import ImageTask as ImageTask
    from jaxformer.data.tasks.images import LabelledImages as LabelledImages
    from jaxformer.data.tasks.images import MaskedPatches as MaskedPatches
    from jaxformer.data.tasks.masked_lm import MaskedSentencePairs as MaskedSentencePairs
    from jaxformer.data.tasks.multi import MultiTask as MultiTask
    from jaxformer.data.tasks.pairs import TextPairs as TextPairs
    from jaxformer.data.tasks.preferences import Preferences as Preferences
    from jaxformer.data.tasks.question_answering import AnswerSpans as AnswerSpans
    from jaxformer.data.tasks.segmentation import SegmentedImages as SegmentedImages
    from jaxformer.data.tasks.seq2seq import PrefixLM as PrefixLM
    from jaxformer.data.tasks.seq2seq import TextToText as TextToText
    from jaxformer.data.tasks.span_corruption import UL2 as UL2
    from jaxformer.data.tasks.span_corruption import Denoiser as Denoiser
    from jaxformer.data.tasks.span_corruption import SpanCorruption as SpanCorruption
    from jaxformer.data.tasks.speaking import SpokenPhonemes as SpokenPhonemes
    from jaxformer.data.tasks.spoken_text import LetterField as LetterField
    from jaxformer.data.tasks.spoken_text import SpokenText as SpokenText
    from jaxformer.data.tasks.summary_sentences import SummarySentences as SummarySentences
    from jaxformer.data.tasks.tagging import TagTokens as TagTokens
    from jaxformer.data.tasks.transcription import TranscriptField as TranscriptField
    from jaxformer.data.tasks.transcription import Transcription as Transcription
    from jaxformer.data.tasks.waveforms import ClusteredSpeech as ClusteredSpeech
    from jaxformer.data.tasks.waveforms import MaskedSpeech as MaskedSpeech
    from jaxformer.data.tasks.waveforms import SpelledSpeech as SpelledSpeech
    from jaxformer.data.transforms.clusters import Clusters as Clusters
    from jaxformer.data.transforms.clusters import Mfcc as Mfcc
    from jaxformer.data.transforms.clusters import fit_clusters as fit_clusters
    from jaxformer.data.transforms.framing import Framing as Framing
    from jaxformer.data.transforms.griffin_lim import griffin_lim as griffin_lim
    from jaxformer.data.transforms.image import Augmentation as Augmentation
    from jaxformer.data.transforms.log_mel import SPOKEN as SPOKEN
    from jaxformer.data.transforms.log_mel import LogMel as LogMel
    from jaxformer.data.transforms.scale_jitter import ScaleJitter as ScaleJitter
    from jaxformer.data.transforms.span_masking import SpanMasking as SpanMasking
    from jaxformer.data.transforms.text import TextAugmentation as TextAugmentation
    from jaxformer.data.transforms.utterances import Utterances as Utterances
else:
    __getattr__, __dir__, __all__ = namespaces.attach(
        __name__,
        {
            "data.fields.boxes": ("BoxField",),
            "data.fields.characters": ("CharacterField",),
            "data.fields.clip": ("ClipField",),
            "data.fields.image": ("ImageField",),
            "data.fields.label": ("LabelField",),
            "data.fields.mask": ("MaskField",),
            "data.fields.phonemes": ("PhonemeField",),
            "data.fields.sound": ("SoundField",),
            "data.fields.spectrogram": ("SpectrogramField",),
            "data.fields.text": ("TextField", "TokenField"),
            "data.fields.waveform": ("WaveformField",),
            "data.fields.vector": ("VectorField",),
            "data.pipeline.loader": ("Data", "evaluation_batches", "train_batches"),
            "data.sources.clips": ("ClipFolders",),
            "data.sources.detection": ("CocoDetection", "VocDetection"),
            "data.sources.pictures": ("ImageFolders",),
            "data.sources.panoptic": ("CocoPanoptic",),
            "data.sources.segmentation": ("MaskFolders",),
            "data.sources.sounds": ("SoundManifest", "SpeechFolder"),
            "data.sources.sources": ("Columns", "JsonLines", "Mixture", "ParallelFiles", "Source", "TextFiles", "Tfds"),
            "data.sources.tables": ("ClassFolders", "Csv", "Tsv"),
            "data.tasks.base": ("Task",),
            "data.tasks.boxes": ("LabelledBoxes",),
            "data.tasks.causal_lm": ("NextToken",),
            "data.tasks.chat_template": ("ChatTemplate",),
            "data.tasks.classification": ("Classify",),
            "data.tasks.clips": ("ClipTask", "LabelledClips", "MaskedTubes"),
            "data.tasks.dialogue": ("Dialogue", "DialogueTemplate"),
            "data.tasks.composed": ("FieldTask",),
            "data.tasks.drawing": ("ImagesFromLabels", "ImagesFromText"),
            "data.tasks.image_text": ("ImageTextPairs",),
            "data.tasks.images": ("ImageTask", "LabelledImages", "MaskedPatches"),
            "data.tasks.masked_lm": ("MaskedSentencePairs",),
            "data.tasks.multi": ("MultiTask",),
            "data.tasks.pairs": ("TextPairs",),
            "data.tasks.preferences": ("Preferences",),
            "data.tasks.question_answering": ("AnswerSpans",),
            "data.tasks.segmentation": ("SegmentedImages",),
            "data.tasks.seq2seq": ("PrefixLM", "TextToText"),
            "data.tasks.span_corruption": ("Denoiser", "SpanCorruption", "UL2"),
            "data.tasks.speaking": ("SpokenPhonemes",),
            "data.tasks.spoken_text": ("LetterField", "SpokenText"),
            "data.tasks.summary_sentences": ("SummarySentences",),
            "data.tasks.tagging": ("TagTokens",),
            "data.tasks.transcription": ("TranscriptField", "Transcription"),
            "data.tasks.waveforms": ("ClusteredSpeech", "MaskedSpeech", "SpelledSpeech"),
            "data.transforms.clusters": ("Clusters", "Mfcc", "fit_clusters"),
            "data.transforms.framing": ("Framing",),
            "data.transforms.griffin_lim": ("griffin_lim",),
            "data.transforms.image": ("Augmentation",),
            "data.transforms.scale_jitter": ("ScaleJitter",),
            "data.transforms.log_mel": ("SPOKEN", "LogMel"),
            "data.transforms.span_masking": ("SpanMasking",),
            "data.transforms.text": ("TextAugmentation",),
            "data.transforms.utterances": ("Utterances",),
        },
    )

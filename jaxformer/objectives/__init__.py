"""Objectives: they define the loss and the metrics for training a model."""

from typing import TYPE_CHECKING

from jaxformer import namespaces

if TYPE_CHECKING:
    from jaxformer.objectives.base import Objective as Objective
    from jaxformer.objectives.causal_lm import CausalLM as CausalLM
    from jaxformer.objectives.classification import Classification as Classification
    from jaxformer.objectives.ctc import Ctc as Ctc
    from jaxformer.objectives.discrete_autoencoding import DiscreteAutoencoding as DiscreteAutoencoding
    from jaxformer.objectives.dpo import Dpo as Dpo
    from jaxformer.objectives.extractive_summarization import ExtractiveSummarization as ExtractiveSummarization
    from jaxformer.objectives.flow_matching import FlowMatching as FlowMatching
    from jaxformer.objectives.image_classification import ImageClassification as ImageClassification
    from jaxformer.objectives.image_embedding import ImageEmbedding as ImageEmbedding
    from jaxformer.objectives.image_text import ImageTextContrastive as ImageTextContrastive
    from jaxformer.objectives.image_tokens import ImageTokens as ImageTokens
    from jaxformer.objectives.masked_autoencoding import MaskedAutoencoding as MaskedAutoencoding
    from jaxformer.objectives.masked_lm import MaskedLM as MaskedLM
    from jaxformer.objectives.object_detection import ObjectDetection as ObjectDetection
    from jaxformer.objectives.parallel_speech import ParallelSpeech as ParallelSpeech
    from jaxformer.objectives.question_answering import QuestionAnswering as QuestionAnswering
    from jaxformer.objectives.regression import Regression as Regression
    from jaxformer.objectives.semantic_segmentation import SemanticSegmentation as SemanticSegmentation
    from jaxformer.objectives.sentence_embedding import SentenceEmbedding as SentenceEmbedding
    from jaxformer.objectives.seq2seq_lm import Seq2SeqLM as Seq2SeqLM
    from jaxformer.objectives.speech_clusters import SpeechClusters as SpeechClusters
    from jaxformer.objectives.speech_contrast import SpeechContrast as SpeechContrast
    from jaxformer.objectives.speech_frames import SpeechFrames as SpeechFrames
    from jaxformer.objectives.speech_to_text import SpeechToText as SpeechToText
    from jaxformer.objectives.tagging import Tagging as Tagging
    from jaxformer.objectives.video_classification import VideoClassification as VideoClassification
    from jaxformer.objectives.video_masked_autoencoding import VideoMaskedAutoencoding as VideoMaskedAutoencoding
else:
    __getattr__, __dir__, __all__ = namespaces.attach(
        __name__,
        {
            "objectives.base": ("Objective",),
            "objectives.causal_lm": ("CausalLM",),
            "objectives.classification": ("Classification",),
            "objectives.ctc": ("Ctc",),
            "objectives.discrete_autoencoding": ("DiscreteAutoencoding",),
            "objectives.dpo": ("Dpo",),
            "objectives.extractive_summarization": ("ExtractiveSummarization",),
            "objectives.flow_matching": ("FlowMatching",),
            "objectives.image_classification": ("ImageClassification",),
            "objectives.image_embedding": ("ImageEmbedding",),
            "objectives.image_text": ("ImageTextContrastive",),
            "objectives.image_tokens": ("ImageTokens",),
            "objectives.masked_autoencoding": ("MaskedAutoencoding",),
            "objectives.masked_lm": ("MaskedLM",),
            "objectives.object_detection": ("ObjectDetection",),
            "objectives.parallel_speech": ("ParallelSpeech",),
            "objectives.question_answering": ("QuestionAnswering",),
            "objectives.regression": ("Regression",),
            "objectives.semantic_segmentation": ("SemanticSegmentation",),
            "objectives.sentence_embedding": ("SentenceEmbedding",),
            "objectives.seq2seq_lm": ("Seq2SeqLM",),
            "objectives.speech_frames": ("SpeechFrames",),
            "objectives.speech_clusters": ("SpeechClusters",),
            "objectives.speech_contrast": ("SpeechContrast",),
            "objectives.speech_to_text": ("SpeechToText",),
            "objectives.tagging": ("Tagging",),
            "objectives.video_classification": ("VideoClassification",),
            "objectives.video_masked_autoencoding": ("VideoMaskedAutoencoding",),
        },
    )

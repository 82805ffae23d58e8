"""Suggestions for names of config fields that are misspelt, or that are used by other libraries, such as
`learning_rate`.
"""

import difflib
from collections.abc import Sequence

FOREIGN = {
    "optimizer.schedule.peak": "lr learning_rate peak_lr max_lr base_lr step_size",
    "optimizer.schedule.warmup": "warmup_steps num_warmup_steps warmup_iters warmup_ratio",
    "optimizer.schedule.decay": "lr_scheduler lr_scheduler_type scheduler lr_schedule lr_decay",
    "optimizer.schedule.end": "min_lr final_lr end_lr",
    "optimizer.weight_decay": "wd decay_rate l2",
    "optimizer.clip": "max_grad_norm grad_clip clip_grad clip_norm gradient_clip gradient_clipping grad_norm",
    "optimizer.accumulate": "gradient_accumulation_steps grad_accum accumulation_steps accumulate_grad_batches",
    "optimizer.ema": "ema_decay use_ema",
    "optimizer.b1": "beta1 adam_beta1 betas",
    "optimizer.b2": "beta2 adam_beta2",
    "optimizer.eps": "epsilon adam_epsilon",
    "optimizer": "optim optimizer_name",
    "data.batch": "batch_size bs train_batch_size per_device_train_batch_size micro_batch_size global_batch_size",
    "data.workers": "num_workers dataloader_num_workers",
    "data.task.length": "seq_len seq_length sequence_length max_seq_length max_seq_len block_size context_length n_ctx",
    "data.task.mask_rate": "mlm_probability mask_prob masking_rate",
    "data.train": "train_file dataset train_data data_path dataset_name",
    "data.validation": "validation_file val_file eval_file dev_file validation_data",
    "data.task.image.size": "image_size img_size",
    "steps": "max_steps num_steps total_steps train_steps num_train_steps iterations num_iterations max_iters "
    "epochs epoch num_epochs max_epochs num_train_epochs",
    "seed": "random_seed random_state rng_seed",
    "init": "init_from pretrained from_pretrained checkpoint_path model_name_or_path load load_from finetune_from",
    "width": "hidden_size d_model dim hidden_dim embed_dim embedding_size model_dim n_embd embed_size",
    "depth": "num_layers n_layers layers n_layer num_hidden_layers num_blocks",
    "transformer.heads": "num_heads n_heads n_head num_attention_heads attention_heads",
    "heads": "num_heads n_heads n_head num_attention_heads attention_heads",
    "attention.kv_heads": "num_key_value_heads n_kv_heads num_kv_heads",
    "mlp.width": "intermediate_size ffn_dim d_ff feedforward_dim mlp_dim hidden_features",
    "mlp.activation": "hidden_act activation_function act",
    "dropout": "dropout_rate hidden_dropout_prob dropout_prob p_dropout drop_rate resid_pdrop",
    "attention_dropout": "attention_probs_dropout_prob attn_dropout attn_pdrop",
    "remat": "gradient_checkpointing checkpoint_activations activation_checkpointing",
    "dtype": "precision fp16 bf16 mixed_precision compute_dtype",
    "vocab": "vocab_size vocabulary_size n_vocab",
    "max_length": "positions max_position_embeddings n_positions max_positions",
    "patch": "patch_size",
    "labels": "num_labels num_classes classes class_names",
    "label_smoothing": "label_smoothing_factor smoothing",
    "max_new_tokens": "max_new_tokens max_tokens",
    "num_beams": "beams beam_size",
    "lora.rank": "lora_r lora_rank",
    "lora.alpha": "lora_alpha",
    "lora": "peft use_lora",
    "evaluation.every": "eval_steps eval_every eval_interval eval_freq val_check_interval evaluation_steps",
    "evaluation.patience": "early_stopping early_stopping_patience",
    "checkpoint.every": "save_steps save_every save_interval checkpoint_every ckpt_every",
    "checkpoint.keep": "save_total_limit max_to_keep keep_checkpoints",
    "checkpoint.best": "metric_for_best_model save_best monitor",
    "log.every": "logging_steps log_steps log_every log_interval log_every_n_steps",
    "mesh.data": "devices gpus tpus n_gpus num_gpus num_devices dp data_parallel",
    "mesh.fsdp": "fsdp_size zero",
    "mesh.tensor": "tp tensor_parallel tensor_parallel_size model_parallel",
    "workdir": "output_dir out_dir output out save_dir log_dir logdir run run_dir checkpoint_dir ckpt_dir work_dir",
}
"""Maps the end of a field's path to the names that other libraries give to the same setting, separated by spaces. If
two ends match a field, the longer one comes first.
"""


def nearest(name: str, names: Sequence[str]) -> str | None:
    """Suggests the one of `names` that was probably meant by a misspelt or foreign field name. Returns None if none
    matches.

    Compares the last parts of dotted names, then names of the same setting in other libraries, then the spelling.
    """
    by_end = {path.rpartition(".")[2]: path for path in reversed(names)}
    whole = [path for path in names if path.endswith(f".{name}")]
    alike = whole or _called(name, names) or difflib.get_close_matches(name, names, 1)
    alike = alike or [by_end[end] for end in difflib.get_close_matches(name.rpartition(".")[2], by_end, 1)]
    return alike[0] if alike else None


def _called(name: str, names: Sequence[str]) -> list[str]:
    """Returns all of `names` whose setting has the name `name` in another library (see `FOREIGN`). Names with the
    fewest dots come first.
    """
    plain = _plain(name.rpartition(".")[2])
    for path, foreign in FOREIGN.items():
        if plain in map(_plain, foreign.split()):
            found = [known for known in names if f".{known}".endswith(f".{path}")]
            if not found and not any("." in known for known in names):  # The names are the fields of one class.
                found = [part for part in reversed(path.split(".")) if part in names]
            if found:
                return sorted(found, key=lambda known: known.count("."))
    return []


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()

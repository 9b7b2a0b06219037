"""A configuration that somebody wrote by hand, with comments and with keys that no question is about."""

CONFIG = """{
  // my own run
  "--model_flavour": "nano",
  "--output_dir": "out/mine",   /* where */
  "--save_total_limit": "3",
  "--seed": 7, # lucky
  "--train_batch_size": 16,
  "--max_train_steps": "12",
  "--mixed_precision": "no",
  "--optimizer": "torch-adamw",
  "--lora_rank": 4,
  "--user_prompt_library": "config/mine.json",
  "--tracker_run_name": "x",
}
"""
DATASETS = """[
  // the set
  { "id": "mine", "type": "local", "instance_data_dir": "pictures",
    "caption_strategy": "textfile", "resolution": 64, "probability": 0.5, "repeats": 1 },
  { "id": "text", "type": "local", "dataset_type": "text_embeds", "default": true, "cache_dir": "cache/text" }
]
"""
PROMPTS = '{ "my-cat": "flat emoji of a cat" }\n'

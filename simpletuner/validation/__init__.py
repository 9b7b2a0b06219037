"""Pictures made while training, from fixed prompts and fixed noise, so that steps compare with each other."""

"""What all backbones here share: prompt and collator, reserved tokens, language loop, rotary tables.

Nothing here is imported eagerly: a data worker unpickles the collator without transformers.
"""

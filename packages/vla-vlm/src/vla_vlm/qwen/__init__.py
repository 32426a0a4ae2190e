"""What Qwen's vision-language models have in common: prompt, tokens, loops, loading.

Nothing here is imported eagerly: a data worker unpickles the collator without transformers.
"""

"""The tokenizer stage: learns the vocabulary and turns documents into token shards."""

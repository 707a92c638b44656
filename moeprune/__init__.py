"""Expert pruning of Mixture-of-Experts language models: the numerics and the model surgery.

Legend of letters in shapes: L layers with experts, E routed experts, T tokens, K experts per token,
D model width, I inner width of an expert, C chunks of a corpus, B blocks, S corpora.
"""

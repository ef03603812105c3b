"""The tool: record and prune any transformers LVLM. It knows nothing of scenes or studies.

`tokens` says which token is what, `recording` instruments attention, `strategies` score tokens,
`pruner` drops them, and `theory` states what dropping them does to one softmax.
"""

"""Low rank: Ŵ = A B, two thin matrices in place of one."""

"""Where the gains of chain-of-thought training of language-model agents land."""

"""The papers' supervised tasks: a head on the features of the towers, trained on a whole training split."""

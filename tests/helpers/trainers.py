"""Private trainers with a planted fault."""

from codream_secure.privacy.dpsgd import PrivateTrainer


def planted(**changed):
    def make(model, **options):
        return PrivateTrainer(
            model,
            **{k: v(options) if callable(v := changed.get(k)) else options[k] for k in options},
        )

    return make

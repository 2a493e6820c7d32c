"""Training of Deep Potential models; `dphpc.train(input)` is `dphpc.train.run.train(input)`."""

from dphpc.core.callable_module import make_callable

make_callable(__name__, "dphpc.train.run:train")

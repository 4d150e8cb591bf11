from ._account import Rescaled as Rescaled
from ._ramp import Ramp as Ramp
from ._ramp import ramp as ramp
from ._rescale import rescale as rescale
from ._rules import RULES as RULES
from ._verify import Verification as Verification
from ._verify import verify as verify

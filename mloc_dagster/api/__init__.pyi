from .app import create_app as create_app
from .auth import OriginGuard as OriginGuard, Tokens as Tokens
from .fleet_access import FleetAccess as FleetAccess
from .limits import TimeoutProtocol as TimeoutProtocol
from .metrics import access_log_on_stdout as access_log_on_stdout
from .problems import Refusal as Refusal, problem_response as problem_response

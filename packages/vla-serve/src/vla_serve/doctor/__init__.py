"""Why a served policy does not do what was recorded: replay, measure, undo the usual mistakes one by one."""

// The population forward over the vectors and words of one instruction set: each file builds on those before it.
#include "cells.h"

#include "tiles.h"

#include "multiply.h"

#include "project.h"

#include "narrow.h"
#include "tile_step.h"

#include "wide.h"

#include "recurrence.h"

#include "layers.h"

#include "output.h"

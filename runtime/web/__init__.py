"""The live page: a small server beside the line, whose pictures, numbers and controls never slow the inspection."""

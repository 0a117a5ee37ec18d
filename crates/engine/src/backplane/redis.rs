//! Redis: pub/sub for topics without history, one stream for those with.

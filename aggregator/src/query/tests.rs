//! The service over a real fleet and a real store.

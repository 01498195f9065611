//! `config.json` and `generation_config.json`.

use nv_config::{load_config, load_generation_config};

use super::scratch;

/// A config that is accepted is valid, and its sizes can be computed with.
pub fn config_json(data: &[u8]) {
    let path = scratch::write("config.json", data);
    match load_config(&path) {
        Ok(config) => {
            config.validate().expect("what was read is valid");
            assert!(config.num_parameters() > 0);
            assert!(config.kv_cache_bytes_per_token(4) > 0);
            assert_eq!(config.num_key_value_groups() * config.kv_size(), config.q_size());
        }
        Err(error) => scratch::assert_names(&error, &path),
    }
}

/// A generation config that is accepted is valid.
pub fn generation_config_json(data: &[u8]) {
    let path = scratch::write("generation_config.json", data);
    match load_generation_config(&path) {
        Ok(config) => config.validate().expect("what was read is valid"),
        Err(error) => scratch::assert_names(&error, &path),
    }
}

//! `/tokenize` and `/detokenize`: text to tokens and back, as vLLM has them.

use axum::Json;
use axum::extract::State;
use nv_engine::TokenId;
use serde_json::{Value, json};

use crate::chat::Conversation;
use crate::error::{Error, Result};
use crate::fields::{Body, finish};
use crate::server::Server;

/// The tokens of a prompt, or of a conversation.
pub(crate) async fn tokenize(State(server): State<Server>, body: Body) -> Result<Json<Value>> {
    let Body(mut fields) = body;
    server.check_model(fields.take::<String>("model")?.as_deref())?;
    let with_strings = fields.take("return_token_strs")?.unwrap_or(false);
    let token_ids = if fields.has("messages") {
        let conversation = Conversation::take(&mut fields, &server)?;
        finish(fields);
        server.compute(move |server| Ok(conversation.encode(server)?.token_ids)).await?
    } else {
        let prompt: String = fields.take("prompt")?.ok_or_else(|| {
            Error::field("prompt", "expected a string, or `messages`, found nothing")
        })?;
        let add_special_tokens = fields.take("add_special_tokens")?.unwrap_or(true);
        finish(fields);
        let encode =
            move |server: &Server| Ok(server.tokenizer().encode(&prompt, add_special_tokens)?);
        server.compute(encode).await?
    };
    let tokenizer = server.tokenizer();
    let strings =
        |ids: &[TokenId]| ids.iter().map(|&id| tokenizer.id_to_token(id)).collect::<Vec<_>>();
    Ok(Json(json!({
        "count": token_ids.len(),
        "max_model_len": server.max_model_len(),
        "token_strs": with_strings.then(|| strings(&token_ids)),
        "tokens": token_ids,
    })))
}

/// The text of tokens, special ones included.
pub(crate) async fn detokenize(State(server): State<Server>, body: Body) -> Result<Json<Value>> {
    let Body(mut fields) = body;
    server.check_model(fields.take::<String>("model")?.as_deref())?;
    let token_ids: Vec<TokenId> = fields.require("tokens")?;
    finish(fields);
    let tokenizer = server.tokenizer();
    if let Some(index) = token_ids.iter().position(|&id| tokenizer.id_to_token(id).is_none()) {
        let reason = format!("expected a token of the model, found {}", token_ids[index]);
        return Err(Error::field(format!("tokens[{index}]"), reason));
    }
    Ok(Json(json!({"prompt": tokenizer.decode(&token_ids, false)})))
}

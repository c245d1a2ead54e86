CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE background_activations (
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	records BLOB NOT NULL, 
	positions BLOB NOT NULL, 
	activations BLOB NOT NULL, 
	PRIMARY KEY (run_id, layer, unit), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE backgrounds (
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	segments BLOB NOT NULL, 
	PRIMARY KEY (run_id, layer), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE exemplars (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	kind VARCHAR(8) NOT NULL, 
	segments BLOB NOT NULL, 
	starts BLOB NOT NULL, 
	documents BLOB NOT NULL, 
	token_offsets BLOB NOT NULL, 
	peaks BLOB NOT NULL, 
	activations BLOB NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE, 
	CONSTRAINT uq_exemplars_run_id_layer_neuron_kind UNIQUE (run_id, layer, unit, kind)
);
CREATE TABLE explanations (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	explainer VARCHAR(32) NOT NULL, 
	candidate INTEGER NOT NULL, 
	request_key VARCHAR(64) NOT NULL, 
	chosen BOOLEAN NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	text TEXT, 
	reason TEXT, 
	reply TEXT, 
	engine VARCHAR(16) NOT NULL, 
	engine_version TEXT, 
	model TEXT NOT NULL, 
	model_revision TEXT, 
	prompt_sha256 VARCHAR(64), 
	sampling JSON NOT NULL, 
	prompt_tokens INTEGER NOT NULL, 
	completion_tokens INTEGER NOT NULL, 
	seconds FLOAT NOT NULL, 
	created_at VARCHAR(32) NOT NULL, covers JSON, parts JSON, side VARCHAR(8) DEFAULT 'positive' NOT NULL, rule TEXT, examples JSON, 
	PRIMARY KEY (id), 
	FOREIGN KEY(prompt_sha256) REFERENCES prompts (sha256), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE, 
	CONSTRAINT uq_explanations_run_id_layer_neuron_request_key UNIQUE (run_id, layer, unit, request_key)
);
CREATE VIRTUAL TABLE explanations_fts USING fts5(text, content='explanations', content_rowid='id');
CREATE TRIGGER explanations_fts_delete AFTER DELETE ON explanations BEGIN
  INSERT INTO explanations_fts(explanations_fts, rowid, text) VALUES ('delete', old.id, old.text);
END;
CREATE TRIGGER explanations_fts_insert AFTER INSERT ON explanations BEGIN
  INSERT INTO explanations_fts(rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER explanations_fts_update AFTER UPDATE OF text ON explanations BEGIN
  INSERT INTO explanations_fts(explanations_fts, rowid, text) VALUES ('delete', old.id, old.text);
  INSERT INTO explanations_fts(rowid, text) VALUES (new.id, new.text);
END;
CREATE TABLE hard_records (
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	side VARCHAR(8) NOT NULL, 
	segments BLOB NOT NULL, 
	starts BLOB NOT NULL, 
	reasons BLOB NOT NULL, 
	others BLOB NOT NULL, 
	activations BLOB NOT NULL, 
	checksum VARCHAR(16) NOT NULL, 
	PRIMARY KEY (run_id, layer, unit, side), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE INDEX ix_leases_holder ON leases (holder);
CREATE INDEX ix_scores_headline ON scores (run_id, metric, subset, split, value);
CREATE INDEX ix_scores_headline_layer ON scores (run_id, layer, metric, subset, split, value);
CREATE INDEX ix_scores_lower ON scores (run_id, metric, subset, ci_low, layer, value) WHERE split = 'report' AND ci_low IS NOT NULL;
CREATE INDEX ix_tokens_run_id_text ON tokens (run_id, text);
CREATE INDEX ix_units_run_id_max_activation ON units (run_id, max_activation);
CREATE TABLE leases (
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	side VARCHAR(8) NOT NULL, 
	holder VARCHAR(64) NOT NULL, 
	expires_at DATETIME NOT NULL, 
	PRIMARY KEY (run_id, layer, unit, side), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE peak_tokens (
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	token_id INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	count INTEGER NOT NULL, 
	PRIMARY KEY (run_id, layer, token_id, unit), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE "predictions" (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	explanation_id INTEGER NOT NULL, 
	scorer VARCHAR(32) NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	reason TEXT, 
	reply TEXT, 
	kinds BLOB NOT NULL, 
	ranks BLOB NOT NULL, 
	firsts BLOB NOT NULL, 
	predicted BLOB NOT NULL, 
	detail BLOB, 
	control BLOB, 
	control_explanation_id INTEGER, 
	engine VARCHAR(16) NOT NULL, 
	engine_version TEXT, 
	model TEXT NOT NULL, 
	model_revision TEXT, 
	prompt_sha256 VARCHAR(64), 
	sampling JSON NOT NULL, 
	prompt_tokens INTEGER NOT NULL, 
	completion_tokens INTEGER NOT NULL, 
	seconds FLOAT NOT NULL, 
	created_at VARCHAR(32) NOT NULL, codec VARCHAR(16) DEFAULT 'levels' NOT NULL, n_read INTEGER, with_bills BOOLEAN, has_report BOOLEAN, background BLOB, background_detail BLOB, background_control BLOB, guesses BLOB, n_background INTEGER, n_hard INTEGER, 
	PRIMARY KEY (id), 
	FOREIGN KEY(explanation_id) REFERENCES explanations (id) ON DELETE CASCADE, 
	FOREIGN KEY(prompt_sha256) REFERENCES prompts (sha256), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE, 
	CONSTRAINT uq_simulations_explanation_id_simulator_model UNIQUE (explanation_id, scorer, model)
);
CREATE TABLE prompts (
	sha256 VARCHAR(64) NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (sha256)
);
CREATE TABLE rule_predictions (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	explanation_id INTEGER NOT NULL, 
	scorer VARCHAR(32) NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	reason TEXT, 
	reply TEXT, 
	kinds BLOB NOT NULL, 
	ranks BLOB NOT NULL, 
	firsts BLOB NOT NULL, 
	predicted BLOB NOT NULL, 
	detail BLOB, 
	control BLOB, 
	control_explanation_id INTEGER, 
	engine VARCHAR(16) NOT NULL, 
	engine_version TEXT, 
	model TEXT NOT NULL, 
	model_revision TEXT, 
	prompt_sha256 VARCHAR(64), 
	sampling JSON NOT NULL, 
	prompt_tokens INTEGER NOT NULL, 
	completion_tokens INTEGER NOT NULL, 
	seconds FLOAT NOT NULL, 
	created_at VARCHAR(32) NOT NULL, 
	codec VARCHAR(16) DEFAULT 'levels' NOT NULL, 
	n_read INTEGER, 
	with_bills BOOLEAN, 
	has_report BOOLEAN, background BLOB, background_detail BLOB, background_control BLOB, guesses BLOB, n_background INTEGER, n_hard INTEGER, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_rule_predictions UNIQUE (explanation_id, scorer, model), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE, 
	FOREIGN KEY(explanation_id) REFERENCES explanations (id) ON DELETE CASCADE, 
	FOREIGN KEY(prompt_sha256) REFERENCES prompts (sha256)
);
CREATE TABLE rule_scores (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	explanation_id INTEGER NOT NULL, 
	scorer VARCHAR(32) NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	reason TEXT, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	scorer_model TEXT NOT NULL, 
	metric VARCHAR(32) NOT NULL, 
	split VARCHAR(8) NOT NULL, 
	subset VARCHAR(32) NOT NULL, 
	value FLOAT, 
	ci_low FLOAT, 
	ci_high FLOAT, 
	ci_reason TEXT, 
	control FLOAT, 
	control_explanation_id INTEGER, 
	control_reason TEXT, 
	n_tokens INTEGER NOT NULL, 
	n_records INTEGER NOT NULL, 
	effective_records FLOAT, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_rule_scores UNIQUE (explanation_id, scorer, scorer_model, metric, split, subset), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE, 
	FOREIGN KEY(explanation_id) REFERENCES explanations (id) ON DELETE CASCADE
);
CREATE TABLE runs (
	id INTEGER NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	subject TEXT NOT NULL, 
	subject_revision TEXT, 
	dtype VARCHAR(16) NOT NULL, 
	layers JSON NOT NULL, 
	n_layers INTEGER NOT NULL, 
	top_k INTEGER NOT NULL, 
	n_random INTEGER NOT NULL, 
	seed INTEGER NOT NULL, 
	tokenizer_sha256 VARCHAR(64) NOT NULL, 
	config JSON NOT NULL, 
	n_segments INTEGER NOT NULL, 
	n_documents INTEGER NOT NULL, 
	n_tokens INTEGER NOT NULL, 
	started_at VARCHAR(32) NOT NULL, 
	finished_at VARCHAR(32), 
	versions JSON NOT NULL, activation VARCHAR(32) DEFAULT 'act' NOT NULL, rectified BOOLEAN DEFAULT 0 NOT NULL, split_rule VARCHAR(16) DEFAULT 'ranks' NOT NULL, n_sampled INTEGER DEFAULT '0' NOT NULL, barred_ids JSON DEFAULT '[]' NOT NULL, split_segments JSON DEFAULT '{}' NOT NULL, n_background INTEGER DEFAULT '0' NOT NULL, health JSON DEFAULT '{}' NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE samples (
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	side VARCHAR(8) NOT NULL, 
	counts BLOB NOT NULL, 
	sizes BLOB NOT NULL, 
	thresholds BLOB NOT NULL, 
	checksum VARCHAR(16) NOT NULL, 
	PRIMARY KEY (run_id, layer, unit, side), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE scores (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	explanation_id INTEGER NOT NULL, 
	scorer VARCHAR(32) NOT NULL, 
	scorer_model TEXT NOT NULL, 
	metric VARCHAR(32) NOT NULL, 
	split VARCHAR(8) NOT NULL, 
	subset VARCHAR(32) NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	reason TEXT, 
	value FLOAT, 
	ci_low FLOAT, 
	ci_high FLOAT, 
	ci_reason TEXT, 
	control FLOAT, 
	control_explanation_id INTEGER, 
	control_reason TEXT, 
	n_tokens INTEGER NOT NULL, 
	n_records INTEGER NOT NULL, effective_records FLOAT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(explanation_id) REFERENCES explanations (id) ON DELETE CASCADE, 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE, 
	CONSTRAINT uq_scores UNIQUE (explanation_id, scorer, scorer_model, metric, split, subset)
);
CREATE TABLE segments (
	run_id INTEGER NOT NULL, 
	segment INTEGER NOT NULL, 
	token_ids BLOB NOT NULL, split VARCHAR(8), 
	PRIMARY KEY (run_id, segment), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE sessions (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	started_at VARCHAR(32) NOT NULL, 
	seconds FLOAT NOT NULL, 
	explainer VARCHAR(32), 
	model TEXT, 
	scorer VARCHAR(32), 
	scorer_model TEXT, 
	n_neurons INTEGER NOT NULL, 
	n_failed INTEGER NOT NULL, 
	prompt_tokens BIGINT NOT NULL, 
	cached_tokens BIGINT, 
	completion_tokens BIGINT NOT NULL, 
	scorer_prompt_tokens BIGINT NOT NULL, 
	scored_tokens BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
CREATE TABLE simulator_checks (
	run_id INTEGER NOT NULL, 
	scorer VARCHAR(32) NOT NULL, 
	scorer_model TEXT NOT NULL, 
	engine_version TEXT NOT NULL, 
	created_at VARCHAR(32) NOT NULL, 
	n_neurons INTEGER NOT NULL, 
	n_explanations INTEGER NOT NULL, 
	n_records INTEGER NOT NULL, 
	n_won INTEGER NOT NULL, 
	n_undefined INTEGER NOT NULL, 
	mean_true FLOAT, 
	mean_false FLOAT, 
	mean_margin FLOAT NOT NULL, 
	computed_per_token FLOAT, 
	seconds FLOAT NOT NULL, 
	kinds JSON NOT NULL, 
	PRIMARY KEY (run_id, scorer, scorer_model), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE sources (
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	kind VARCHAR(64) NOT NULL, 
	module VARCHAR(200), 
	side VARCHAR(8) NOT NULL, 
	width INTEGER NOT NULL, 
	dtype VARCHAR(16) NOT NULL, 
	group_size INTEGER, 
	encoder TEXT, 
	PRIMARY KEY (run_id, layer), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE tokens (
	run_id INTEGER NOT NULL, 
	token_id INTEGER NOT NULL, 
	text TEXT NOT NULL, 
	special BOOLEAN NOT NULL, data BLOB, is_byte BOOLEAN DEFAULT 0 NOT NULL, 
	PRIMARY KEY (run_id, token_id), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE "units" (
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	status VARCHAR(8) NOT NULL, 
	mean FLOAT, 
	std FLOAT, 
	min FLOAT, 
	max FLOAT, 
	share_positive FLOAT, 
	max_activation FLOAT, histogram BLOB, nearest_units BLOB, nearest_cosines BLOB, 
	PRIMARY KEY (run_id, layer, unit), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE vectors (
	id INTEGER NOT NULL, 
	run_id INTEGER NOT NULL, 
	block INTEGER NOT NULL, 
	model TEXT NOT NULL, 
	is_current BOOLEAN NOT NULL, 
	checksum VARCHAR(16) NOT NULL, 
	dimensions INTEGER NOT NULL, 
	explanation_ids BLOB NOT NULL, 
	text_hashes BLOB NOT NULL, 
	scales BLOB NOT NULL, 
	numbers BLOB NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_vectors_run_id_block_model UNIQUE (run_id, block, model), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
CREATE TRIGGER vectors_explanation_insert AFTER INSERT ON explanations BEGIN
  UPDATE vectors SET is_current = false WHERE run_id = new.run_id AND is_current AND block IN (new.id / 4096, (SELECT max(block) FROM vectors WHERE run_id = new.run_id));
END;
CREATE TRIGGER vectors_explanation_update AFTER UPDATE OF text ON explanations BEGIN
  UPDATE vectors SET is_current = false WHERE run_id = new.run_id AND is_current AND block = new.id / 4096;
END;
CREATE TABLE vocabulary_readings (
	run_id INTEGER NOT NULL, 
	layer INTEGER NOT NULL, 
	unit INTEGER NOT NULL, 
	promoted_ids BLOB NOT NULL, 
	promoted_logits BLOB NOT NULL, 
	suppressed_ids BLOB NOT NULL, 
	suppressed_logits BLOB NOT NULL, 
	PRIMARY KEY (run_id, layer, unit), 
	FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;

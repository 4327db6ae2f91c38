// Port of moddit/benchmark/record.py; docs/benchmark.schema.json is the schema of what is written here.

/// One run of a benchmark: every sample, and what it was measured on.
///
/// Nothing in a record is computed from its samples, so that it stays right when a definition changes.
package struct BenchmarkRecord: Sendable {
    /// Version of the format.
    static let version = 1
    /// Trials that a record has room for.
    package static let mostTrials = 1000
    /// Samples that a stage has room for.
    package static let mostSamples = 10_000

    /// When it was made, as in "2026-11-26T00:00:00Z".
    let created: String
    /// What made it.
    let program: String
    /// Of this package's repository; nil where nobody knows.
    let commit: String?
    /// Of the command: texts, numbers, truth values, or null.
    let options: [String: JSON]
    /// What can change a time, to its version.
    let libraries: [String: String]
    /// What it ran on.
    package let machine: BenchmarkMachine
    /// The model.
    let subject: Subject
    /// What took turns.
    package let arms: [BenchmarkArm]
    /// In the order in which they ran.
    package let trials: [Trial]

    /// Puts a record together.
    package init(
        created: String, program: String, commit: String?, options: [String: JSON], libraries: [String: String],
        machine: BenchmarkMachine, subject: Subject, arms: [BenchmarkArm], trials: [Trial]
    ) {
        self.created = created
        self.program = program
        self.commit = commit
        self.options = options
        self.libraries = libraries
        self.machine = machine
        self.subject = subject
        self.arms = arms
        self.trials = trials
    }

    /// The model.
    package struct Subject: Sendable, Hashable {
        /// What the bundle was made from.
        let name: String
        /// Of the bundle.
        let fingerprint: String
        /// Of the transformer.
        let architecture: String
        /// Of the transformer.
        let layers: Int

        /// Names the model of a bundle.
        package init(_ manifest: Manifest) {
            name = manifest.provenance.source
            fingerprint = manifest.fingerprint
            architecture = manifest.spec.architecture
            layers = manifest.spec.layers
        }
    }

    /// One cold process.
    package struct Trial: Sendable, Hashable {
        /// Number of its arm.
        package let arm: Int
        /// What might have slowed the machine down when it began.
        package let before: BenchmarkConditions
        /// The same when it had ended.
        package let after: BenchmarkConditions
        /// What it measured.
        package let report: TrialReport

        /// Puts a trial together.
        package init(arm: Int, before: BenchmarkConditions, after: BenchmarkConditions, report: TrialReport) {
            self.arm = arm
            self.before = before
            self.after = after
            self.report = report
        }
    }

    /// The text of the file.
    package var text: String { json.indentedText + "\n" }

    private var json: JSON {
        .object([
            "version": .integer(Self.version),
            "created": .string(created),
            "program": .string(program),
            "commit": .optional(commit) { .string($0) },
            "options": .dictionary(options),
            "libraries": .dictionary(libraries.mapValues { .string($0) }),
            "machine": machine.json,
            "subject": .object([
                "name": .string(subject.name), "fingerprint": .string(subject.fingerprint),
                "architecture": .string(subject.architecture), "layers": .integer(subject.layers),
            ]),
            "arms": .array(arms.map(\.json)),
            "trials": .array(trials.map(\.json)),
        ])
    }
}

extension BenchmarkRecord.Trial {
    fileprivate var json: JSON {
        .object([
            "arm": .integer(arm), "before": before.json, "after": after.json,
            "stages": .array(report.stages.map(\.json)),
            "operations": .dictionary(report.operations.mapValues { .integer($0) }),
        ])
    }
}

/// One function of a package on some compute units.
package struct BenchmarkArm: Sendable, Hashable {
    /// As in "transformer/px64x64_batch2_region0".
    package let name: String
    /// The compute units.
    package let units: ComputeUnits
    /// Of the component's large tensors.
    let dtype: String
    /// Of the component's weights, where they are quantised.
    let bits: Int?
    /// Of the picture; nil for a text encoder.
    package let size: PictureSize?
    /// Rows of a call.
    let batch: Int
    /// Of the picture, or of a text; nil for an autoencoder.
    let tokens: Int?
    /// Of the longest text, 0 of a model of classes; nil for an autoencoder.
    let textTokens: Int?
    /// By a block, in the mean over the layers; nil where nobody knows the layers.
    let keptTokens: Double?
    /// Of a step of the whole batch; nil where they are not counted.
    let flops: Double?

    fileprivate var json: JSON {
        .object([
            "name": .string(name), "runtime": .string(Backend.coreml.rawValue), "device": .string(units.rawValue),
            "dtype": .string(dtype), "bits": .optional(bits) { .integer($0) },
            "height": .optional(size) { .integer($0.height) }, "width": .optional(size) { .integer($0.width) },
            "batch": .integer(batch), "steps": .integer(1), "tokens": .optional(tokens) { .integer($0) },
            "text_tokens": .optional(textTokens) { .integer($0) }, "keep": .null,
            "kept_tokens": .optional(keptTokens) { .number($0) }, "step_flops": .optional(flops) { .number($0) },
        ])
    }
}

/// What does not change between two benchmarks on one machine, but for its updates.
package struct BenchmarkMachine: Sendable, Hashable {
    /// As in "Apple M3 Pro".
    package let chip: String
    /// As in "Mac15,6".
    let model: String?
    /// Of the GPU.
    package let gpuCores: Int?
    /// Of the CPU.
    package let cpuCores: Int
    /// Of memory.
    package let memoryBytes: Int
    /// As in "macOS 26.1".
    package let system: String

    /// Describes a machine.
    package init(chip: String, model: String?, gpuCores: Int?, cpuCores: Int, memoryBytes: Int, system: String) {
        self.chip = chip
        self.model = model
        self.gpuCores = gpuCores
        self.cpuCores = cpuCores
        self.memoryBytes = memoryBytes
        self.system = system
    }

    fileprivate var json: JSON {
        .object([
            "chip": .string(chip), "model": .optional(model) { .string($0) },
            "gpu_cores": .optional(gpuCores) { .integer($0) }, "cpu_cores": .integer(cpuCores),
            "memory_bytes": .integer(memoryBytes), "system": .string(system),
        ])
    }
}

/// What may slow a machine down, at one moment.
package struct BenchmarkConditions: Sendable, Hashable {
    /// Where the power comes from.
    package enum PowerSource: String, Sendable {
        case mains, battery, unknown
    }

    /// How hot the system says it is.
    package enum ThermalState: String, Sendable {
        case nominal, fair, serious, critical, unknown
    }

    /// Where the power comes from.
    package let powerSource: PowerSource
    /// Whether the system saves power; nil where that is not known.
    package let isLowPower: Bool?
    /// How hot the system says it is.
    package let thermalState: ThermalState
    /// Mean number of processes that ran or waited, of the last minute.
    let load: Double?

    /// Describes a moment.
    package init(powerSource: PowerSource, isLowPower: Bool?, thermalState: ThermalState, load: Double?) {
        self.powerSource = powerSource
        self.isLowPower = isLowPower
        self.thermalState = thermalState
        self.load = load
    }

    fileprivate var json: JSON {
        .object([
            "power_source": .string(powerSource.rawValue), "low_power_mode": .optional(isLowPower) { .bool($0) },
            "thermal_state": .string(thermalState.rawValue), "load_average": .optional(load) { .number($0) },
        ])
    }
}

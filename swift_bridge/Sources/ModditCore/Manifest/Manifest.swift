import Foundation

/// Who runs a bundle.
package enum Backend: String, Sendable, CaseIterable {
    /// MLX, which builds the model from tensors.
    case mlx
    /// Core ML, which runs finished graphs.
    case coreml
}

/// What a bundle holds, how it is stored, and where it came from.
///
/// Port of moddit/manifest.py; docs/format.md describes the file.
package struct Manifest: Sendable {
    /// Value of the field "format".
    static let format = "moddit"
    /// The version that this reader knows.
    static let formatVersion = 5
    /// Name of the file in a bundle.
    static let fileName = "manifest.json"
    /// Components that are not tensors.
    private static let withoutTensors = ["tokenizer"]

    /// Who runs it.
    package let backend: Backend
    /// The model.
    package let spec: ModelSpec
    /// Which tokens each layer keeps.
    package let tokens: TokenPolicy
    /// By name, those of the specification.
    package let components: [String: Component]
    /// The packages; nil where the runtime builds the model from tensors.
    package let graphs: Graphs?
    /// Where it came from.
    package let provenance: Provenance
    /// Hash of what the bundle holds, independent of where it lies and when it was made.
    package let fingerprint: String

    /// Reads a manifest.
    ///
    /// - Parameters:
    ///   - data: the bytes of the file.
    ///   - place: its name, for messages.
    /// - Throws: `ModditError.format` if it is damaged or of another version, and other cases for values that are not
    ///   allowed or do not fit together.
    init(_ data: Data, place: String = Manifest.fileName) throws(ModditError) {
        let value = try JSON.parse(data, place: place, component: "manifest")
        try self.init(JSONField(value, place: place, component: "manifest"))
    }

    /// Reads a manifest strictly from its JSON.
    init(_ field: JSONField) throws(ModditError) {
        try Self.checkVersion(field)
        let object = try JSONObject(
            field,
            [
                "format", "format_version", "fingerprint", "backend", "spec", "tokens", "components", "graphs",
                "provenance",
            ])
        fingerprint = try object["fingerprint"].sha256()
        backend = try choice(object["backend"])
        let spec = try ModelSpec(object["spec"])
        self.spec = spec
        tokens = try TokenPolicy(object["tokens"])
        components = try Self.readComponents(object["components"], spec.components, backend)
        graphs = try object.optional("graphs") { item throws(ModditError) in try Graphs(item, roles: spec.roles) }
        provenance = try Provenance(object["provenance"])
        for plan in [tokens.plan, graphs?.trainedPlan].compactMap({ $0 }) { try Self.check(plan, spec, field) }
        guard (graphs == nil) == (backend == .mlx) else {
            let found = "is '\(backend.rawValue)' with\(graphs == nil ? "out" : "") graphs"
            throw try object["backend"].format(found, want: "'mlx' without or 'coreml' with them")
        }
        try graphs?.check(spec, plan: tokens.plan, file: field.file)
        try Self.checkPackages(graphs, components, field)
    }

    /// Files of a package, as the components list them, sorted by path.
    func files(of package: Package) -> [FileInfo] {
        Self.files(of: package, components).sorted { ExactText($0.path) < ExactText($1.path) }
    }

    /// Hash of a package's files: two packages with the same one are the same.
    package func hash(of package: Package) -> String {
        let lines = files(of: package).map { "\($0.sha256) \($0.path)\n" }
        return SHA256Hash.hash(lines.joined().utf8)
    }

    private static func checkVersion(_ field: JSONField) throws(ModditError) {
        guard case .object(let fields) = field.value, fields["format"] == .string(format) else {
            throw .format("[manifest] \(field.file): not a moddit bundle, want \"format\": '\(format)'")
        }
        guard fields["format_version"] == .integer(formatVersion) else {
            let found = fields["format_version", default: .null].shown
            throw .format(
                "[manifest] \(field.file): format_version is unknown, got \(found), want \(formatVersion); "
                    + "convert the checkpoint again, or upgrade moddit if the bundle is newer")
        }
    }

    private static func check(_ plan: RoutingPlan, _ spec: ModelSpec, _ field: JSONField) throws(ModditError) {
        let (layers, timesteps) = (spec.layers, spec.scheduler.numTrainTimesteps)
        guard plan.layers == layers else {
            let found = "has a plan whose keep_tenths has \(plan.layers) layers"
            throw .shape(field.message(found, want: "the transformer's \(layers)"))
        }
        guard plan.numTrainTimesteps == timesteps else {
            let found = "has a plan whose num_train_timesteps is \(plan.numTrainTimesteps)"
            throw .valueRange(field.message(found, want: "the scheduler's \(timesteps)"))
        }
    }

    private static func readComponents(
        _ field: JSONField, _ names: [String], _ backend: Backend
    ) throws(ModditError) -> [String: Component] {
        let object = try JSONObject(field, names)
        var components: [String: Component] = [:]
        for name in names { components[name] = try Component(object[name]) }
        for name in names where !withoutTensors.contains(name) && components[name]?.dtype == nil {
            throw try object[name].format("has dtype null", want: "the dtype of its tensors")
        }
        for name in names {
            let quantization = components[name]?.quantization ?? []
            if let wrong = quantization.first(where: { $0.mode.backend != backend }) {
                let found = "has a quantization of mode \(wrong.mode.rawValue)"
                throw .unsupported(try object[name].message(found, want: "one that backend \(backend.rawValue) has"))
            }
            if backend == .coreml, quantization.count > 1 {
                let found = "has \(quantization.count) items of quantization"
                throw .unsupported(try object[name].message(found, want: "at most 1"))
            }
        }
        return components
    }

    private static func files(of package: Package, _ components: [String: Component]) -> [FileInfo] {
        components.values.flatMap(\.files).filter { $0.path.isPath(inside: package.path) }
    }

    /// Every package must have files, or it could be anything.
    private static func checkPackages(
        _ graphs: Graphs?, _ components: [String: Component], _ field: JSONField
    ) throws(ModditError) {
        for role in PackageRole.allCases {
            for package in graphs?.packages[role] ?? [] where files(of: package, components).isEmpty {
                throw .missing(
                    "[manifest] \(field.file): no component lists files of \(package.path); "
                        + "convert the checkpoint again")
            }
        }
    }
}
